//! Modules use lower layers only: the paths in `src/` against the table of layers.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::path::Path;

/// `(layer, modules)`; a module may use modules of lower layers.
const LAYERS: [&[&str]; 8] = [
    &["error", "config", "rng", "files"],
    &["gpu"],
    &["kernels"],
    &["graph", "plan"],
    &["nn", "model", "data", "interop"],
    &["transform", "train", "metrics"],
    &["discover", "task"],
    &["doctor", "bench", "report", "cli", "main", "demo"],
];

/// Neighbours of one layer that may be used: (who, whom).
const NEIGHBOURS: [(&str, &str); 5] = [("config", "error"), ("files", "error"), ("plan", "graph"), ("model", "nn"), ("train", "transform")];

/// Modules that read and write files of others and know nothing of the engine.
const PLAIN: [&str; 2] = ["data", "interop"];

/// Crates that only these modules name.
const OWNED: [(&str, &str); 2] = [("wgpu", "gpu"), ("naga", "gpu")];

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|l| l.contains(&module))
}

/// Why `user` may not use `used`, if it may not.
fn refusal(user: &str, used: &str) -> Option<String> {
    let (Some(from), Some(to)) = (layer(user), layer(used)) else {
        return Some(format!("`{user}` or `{used}` is in no layer"));
    };
    let top = from == LAYERS.len() - 1;
    let allowed = user == used || top || NEIGHBOURS.contains(&(user, used)) || to < from && (to == 0 || !PLAIN.contains(&user));
    (!allowed).then(|| format!("`{user}` (layer {from}) uses `{used}` (layer {to})"))
}

/// The source without comments, strings and characters, so that only code is left.
fn code(text: &str) -> String {
    let mut out = String::new();
    let bytes: Vec<char> = text.chars().collect();
    let mut i = 0;
    while i < bytes.len() {
        let rest = &bytes[i..];
        match rest {
            ['/', '/', ..] => i += rest.iter().position(|&c| c == '\n').unwrap_or(rest.len()),
            ['/', '*', ..] => i += rest.windows(2).position(|w| w == ['*', '/']).map_or(rest.len(), |p| p + 2),
            ['r', '#', '"', ..] => i += 3 + rest[3..].windows(2).position(|w| w == ['"', '#']).map_or(rest.len(), |p| p + 2),
            ['"', ..] => {
                i += 1;
                while i < bytes.len() && bytes[i] != '"' {
                    i += if bytes[i] == '\\' { 2 } else { 1 };
                }
                i += 1;
            }
            ['\'', '\\', _, '\'', ..] => i += 4,
            ['\'', _, '\'', ..] => i += 3,
            [c, ..] => {
                out.push(*c);
                i += 1;
            }
            [] => {}
        }
    }
    out
}

fn word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The crate's own modules named in `code` by `crate::…` or, in a binary, `semantic_genesis::…`.
fn used(code: &str) -> Vec<String> {
    let mut out = Vec::new();
    for root in ["crate::", "semantic_genesis::"] {
        for (at, _) in code.match_indices(root) {
            if code[..at].chars().next_back().is_some_and(|c| word(c) || c == '$') {
                continue;
            }
            let rest = &code[at + root.len()..];
            match rest.strip_prefix('{') {
                None => out.push(rest.chars().take_while(|&c| word(c)).collect()),
                Some(list) => out.extend(first_names(list)),
            }
        }
    }
    out
}

/// First names of the members of a `{…}` list, nested lists left out.
fn first_names(list: &str) -> Vec<String> {
    let (mut depth, mut member, mut out) = (1, String::new(), Vec::new());
    for c in list.chars() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 || (depth == 1 && c == ',') {
            let name: String = member.trim().chars().take_while(|&c| word(c)).collect();
            if !name.is_empty() {
                out.push(name);
            }
            member.clear();
            if depth == 0 {
                break;
            }
        } else {
            member.push(c);
        }
    }
    out
}

/// What is wrong with the text of one file of `module`.
fn violations(module: &str, text: &str) -> Vec<String> {
    let code = code(text);
    let mut out: Vec<String> = used(&code).iter().filter_map(|used| refusal(module, used)).collect();
    for (name, owner) in OWNED {
        let named =
            code.match_indices(&format!("{name}::")).any(|(at, _)| !code[..at].chars().next_back().is_some_and(|c| word(c) || c == ':'));
        if named && module != owner {
            out.push(format!("`{module}` names `{name}`, which only `{owner}` may"));
        }
    }
    out
}

fn files(dir: &Path, out: &mut Vec<std::path::PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => files(&path, out),
            false if path.extension().is_some_and(|e| e == "rs") => out.push(path),
            false => {}
        }
    }
}

#[test]
fn modules_use_lower_layers_only() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut all = Vec::new();
    files(&root, &mut all);
    all.sort();
    assert!(all.len() > 50, "{} files", all.len());
    let mut wrong = Vec::new();
    for path in all {
        let inside = path.strip_prefix(&root).unwrap();
        let module = inside.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs").to_owned();
        if module == "lib" {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        wrong.extend(violations(&module, &text).into_iter().map(|v| format!("{}: {v}", inside.display())));
    }
    assert!(wrong.is_empty(), "{} violations:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn wrong_uses_are_found_and_right_ones_are_not() {
    let wrong = [
        ("graph", "use crate::plan::Plan;"),
        ("kernels", "fn f() { crate::graph::Graph::new(); }"),
        ("data", "use crate::gpu::Context;"),
        ("interop", "use crate::{error::Error, kernels::{check, knn}};"),
        ("nn", "use crate::{\n    error::Result,\n    model::Spec,\n};"),
        ("transform", "use crate::train::phase;"),
        ("kernels", "use wgpu::Buffer;"),
        ("doctor", "fn f(x: naga::Module) {}"),
        ("unheard_of", "use crate::error::Error;"),
        ("error", "use crate::unheard_of::X;"),
        ("gpu", "const C: char = '\"'; use crate::kernels::check; const D: char = '\"';"),
    ];
    for (module, text) in wrong {
        assert_eq!(violations(module, text).len(), 1, "{module}: {text}");
    }
    let right = [
        ("plan", "use crate::graph::Graph; use crate::gpu::Caps;"),
        ("model", "use crate::nn; use crate::graph::{Graph, Home};"),
        ("train", "use crate::transform::Augment; use crate::interop::tensors::File;"),
        ("data", "use crate::error::{Error, Result}; // crate::gpu"),
        ("cli", "use semantic_genesis::doctor; use crate::demo;"),
        ("kernels", "/// [`crate::graph::Graph`]\nuse super::check; const S: &str = \"crate::plan \\\" wgpu::\";"),
        ("gpu", "use wgpu::Buffer; use naga::Module; fn f(x: &'static str) -> char { 'a' }"),
        ("graph", "use crate::{kernels::{conv3d, pool}, error::Result};"),
    ];
    for (module, text) in right {
        assert_eq!(violations(module, text), Vec::<String>::new(), "{module}: {text}");
    }
}
