//! `semgen devices`.

use serde_json::json;

use super::args::Common;
use super::text;
use crate::error::Result;
use crate::gpu::{AdapterReport, Kind, adapters};

pub(super) fn run(common: &Common) -> Result<()> {
    let list = adapters(common.adapter.as_deref())?;
    if common.json {
        text::say_json(&json!({ "adapters": list }));
        return Ok(());
    }
    let rows: Vec<Vec<String>> = list.iter().map(row).collect();
    text::say(text::table(&["", "index", "name", "backend", "kind", "driver"], &rows));
    for a in &list {
        text::say(format_args!("\n{}: {}", a.index, a.caps.name));
        for (label, value) in limits(a) {
            text::say(format_args!("  {label:<22}{value}"));
        }
    }
    if let Some(used) = list.iter().find(|a| a.chosen) {
        text::say(format_args!("\nused: {} ({})", used.caps.name, used.why));
    }
    Ok(())
}

fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Discrete => "discrete",
        Kind::Integrated => "integrated",
        Kind::Other => "other",
        Kind::Cpu => "cpu",
    }
}

fn row(a: &AdapterReport) -> Vec<String> {
    let c = &a.caps;
    let mark = if a.chosen { "*" } else { "" };
    vec![mark.into(), a.index.to_string(), c.name.clone(), c.backend.clone(), kind(c.kind).into(), c.driver.clone()]
}

fn limits(a: &AdapterReport) -> Vec<(&'static str, String)> {
    let c = &a.caps;
    let yes = |b: bool| if b { "yes" } else { "no" }.to_owned();
    let subgroups = match (c.subgroup_min, c.subgroup_max) {
        (0, _) => "none".to_owned(),
        (lo, hi) if lo == hi => format!("{lo} lanes"),
        (lo, hi) => format!("{lo} to {hi} lanes"),
    };
    let cooperative = match c.cooperative.as_slice() {
        [] => "none".to_owned(),
        sizes => sizes.iter().map(|n| format!("{n}×{n}×{n}")).collect::<Vec<_>>().join(", "),
    };
    vec![
        ("largest binding", text::bytes(c.max_binding)),
        ("largest buffer", text::bytes(c.max_buffer)),
        ("workgroup memory", text::bytes(u64::from(c.workgroup_memory))),
        ("groups per dimension", c.max_groups.to_string()),
        ("buffers per kernel", c.max_storage_buffers.to_string()),
        ("subgroups", subgroups),
        ("16-bit floats", yes(c.f16)),
        ("cooperative matrices", cooperative),
        ("timestamps", yes(c.timestamps)),
    ]
}
