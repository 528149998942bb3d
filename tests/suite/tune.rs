//! Tuning: what the search chooses, what the table decides, and that a run keeps what it began with.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use semantic_genesis::bench::tune::{Event, measure, needs, search};
use semantic_genesis::config::{Activation, Config, Norm, Variant};
use semantic_genesis::gpu::{Caps, Choices, Dtype};
use semantic_genesis::graph::Graph;
use semantic_genesis::kernels::conv3d::{Geom, Pass, Problem};
use semantic_genesis::kernels::fingerprint;
use semantic_genesis::model::{Mode, Spec};
use semantic_genesis::plan::tuning::Tuning;
use semantic_genesis::plan::{Options, Plan};
use semantic_genesis::train::fit::Stage;
use semantic_genesis::train::network::Objective;

use crate::cli::TINY;
use crate::harness::{self, Program};

fn graph(mode: Mode) -> Graph {
    let spec = Spec { base: 4, depth: 3, variant: Variant::PyTorch, activation: Activation::Relu, norm: Norm::Running, channels: 1 };
    Objective::Joint { classes: 3, restoration: 1.0, classification: 0.01 }.graph(&spec, 1, [8, 8, 8], mode).unwrap()
}

fn planned(caps: &Caps, choices: &Choices) -> Plan {
    Plan::with(&graph(Mode::Train), caps, &Options { choices: choices.clone(), ..Options::default() }).unwrap()
}

fn text(plan: &Plan) -> String {
    format!("{:?} {:?} {:?}", plan.ops, plan.slots, plan.dispatches)
}

#[test]
fn keys_read_back_as_what_they_stand_for() {
    for (grid, ci, co, kernel, stride, padding) in [
        ([8, 9, 10], 12, 16, [3; 3], [1; 3], [1; 3]),
        ([8, 8, 4], 4, 8, [2; 3], [2; 3], [0; 3]),
        ([1, 32, 32], 1, 4, [1, 3, 3], [1, 2, 2], [0, 1, 1]),
    ] {
        let geom = Geom::new(3, grid, ci, co, kernel, stride, padding).unwrap();
        for pass in Pass::ALL {
            for (input, output) in [(Dtype::F32, Dtype::F32), (Dtype::F16, Dtype::F16), (Dtype::F32, Dtype::F16)] {
                let problem = Problem { pass, geom, source: geom.whole(), input, output };
                assert_eq!(Problem::parse(&problem.key()), Some(problem));
            }
        }
    }
    for wrong in
        ["", "conv3d", "conv3d forward 32>16 1x8x8 k3 s1 p1 f32", "conv3d sideways 32>16 1x8x8x8 k3 s1 p1 f32", "pool a b c d e f g"]
    {
        assert_eq!(Problem::parse(wrong), None, "{wrong}");
    }
}

#[test]
fn plans_say_what_they_ask_for_and_a_choice_decides_one_class_alone() {
    let caps = Caps { subgroup_min: 8, subgroup_max: 8, ..Caps::minimal() };
    let default = planned(&caps, &Choices::default());
    let list = needs(&[("joint", &default)]);
    assert!(list.len() > 10 && list.iter().all(|n| Problem::parse(&n.key).is_some() && n.flops > 0 && !n.layers.is_empty()));
    assert!(list.windows(2).all(|w| w[0].flops * w[0].uses >= w[1].flops * w[1].uses), "most expensive first");
    let first = &list[0];
    let choices = Choices::new([(first.key.clone(), "plain".to_owned())].into());
    let chosen = planned(&caps, &choices);
    let differ: Vec<&str> = default
        .ops
        .iter()
        .zip(&chosen.ops)
        .filter(|(a, b)| {
            let texts = |p: &Plan, r: std::ops::Range<usize>| p.dispatches[r].iter().map(|d| d.source.clone()).collect::<Vec<_>>();
            texts(&default, a.dispatches.clone()) != texts(&chosen, b.dispatches.clone())
        })
        .map(|(a, _)| a.label.as_str())
        .collect();
    let asking: Vec<&str> = default.ops.iter().filter(|o| o.keys.contains(&first.key)).map(|o| o.label.as_str()).collect();
    assert_eq!(differ, asking);
    // The same table gives the same plan, byte for byte; what does not fit is ignored.
    assert_eq!(text(&chosen), text(&planned(&caps, &Choices::new([(first.key.clone(), "plain".to_owned())].into()))));
    let unknown = Choices::new(list.iter().map(|n| (n.key.clone(), "no such variant".to_owned())).collect::<BTreeMap<_, _>>());
    assert_eq!(text(&default), text(&planned(&caps, &unknown)));
}

#[test]
fn every_candidate_is_tried_checked_and_the_winner_is_among_them() {
    let Some(ctx) = harness::trusted() else { return };
    let geom = Geom::new(1, [6, 6, 8], 8, 16, [3; 3], [1; 3], [1; 3]).unwrap();
    for pass in Pass::ALL {
        let problem = Problem { pass, geom, source: geom.whole(), input: Dtype::F32, output: Dtype::F32 };
        let entry = measure(ctx, &problem.key(), Duration::from_secs(5), "k").unwrap();
        let names: Vec<&str> = problem.candidates(ctx.caps()).iter().map(|v| v.name()).collect();
        assert_eq!(entry.candidates.len(), names.len());
        assert!(entry.candidates.iter().all(|c| names.contains(&c.variant.as_str()) && c.seconds.is_some()), "{entry:?}");
        let winner = entry.candidates.iter().find(|c| c.variant == entry.chosen).unwrap();
        assert!(winner.refused.is_none() && winner.error.is_some_and(|e| e < 1e-4), "{entry:?}");
        assert_eq!((entry.default.as_str(), entry.kernels.as_str()), (names[0], "k"));
    }
    assert!(measure(ctx, "no key", Duration::from_secs(1), "k").is_err());
}

#[test]
fn a_search_keeps_to_its_budget_saves_what_it_has_and_goes_on_there() {
    let Some(ctx) = harness::trusted() else { return };
    let dir = tempfile::tempdir().unwrap();
    let kernels = fingerprint(ctx.caps());
    let plan = planned(ctx.caps(), &Choices::default());
    let list = needs(&[("joint", &plan)]);
    let mut tuning = Tuning::load(dir.path(), ctx.caps(), &kernels).unwrap();
    let none = search(ctx, &mut tuning, &list, Duration::ZERO, false, &|| false, &mut |_| panic!("nothing is begun")).unwrap();
    assert_eq!((none.measured, none.left), (0, list.len()));
    let begun = Instant::now();
    let budget = Duration::from_millis(1500);
    let mut found = Vec::new();
    let some = search(ctx, &mut tuning, &list, budget, false, &|| false, &mut |e| {
        if let Event::Found(need, _) = e {
            found.push(need.key.clone());
        }
    })
    .unwrap();
    assert!(some.measured >= 1 && some.measured + some.left == list.len(), "{some:?}");
    assert!(begun.elapsed() < budget + Duration::from_secs(20), "one class may be in the making when the time is up");
    assert_eq!(found, list[..some.measured].iter().map(|n| n.key.clone()).collect::<Vec<_>>(), "most expensive first");
    let kept = Tuning::load(dir.path(), ctx.caps(), &kernels).unwrap();
    assert_eq!(kept.entries().count(), some.measured);
    // Stopped at once, a second search knows what the first has found.
    let again = search(ctx, &mut tuning, &list, budget, false, &|| true, &mut |_| {}).unwrap();
    assert_eq!((again.known, again.measured, again.left), (some.measured, 0, list.len() - some.measured));
    // With other kernels nothing of it counts.
    let other = Tuning::load(dir.path(), ctx.caps(), "other").unwrap();
    assert_eq!((other.entries().count(), other.stale(), other.choices()), (0, some.measured, Choices::default()));
}

#[test]
fn tables_are_shown_forced_exported_imported_and_switched_off() {
    if harness::trusted().is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().join("cache");
    let semgen = Program::new(&cache);
    let file = dir.path().join("table.json");
    let file = file.to_str().unwrap();
    let key = "conv3d forward 8>16 1x8x8x8 k3 s1 p1 f32";
    let shown = semgen.json(&["tune", "show"]);
    assert_eq!((shown["entries"].as_array().unwrap().len(), shown["off"].as_bool()), (0, Some(false)));
    semgen.json(&["tune", "force", key, "plain"]);
    let e = semgen.refused(&["tune", "force", key, "fastest"]);
    assert!(e.contains("fastest") && e.contains("plain"), "{e}");
    assert!(semgen.refused(&["tune", "force", "nonsense", "plain"]).contains("nonsense"));
    let explained = semgen.json(&["tune", "explain", key]);
    assert_eq!((explained[0]["used"].as_str(), explained[0]["why"].as_str()), (Some("plain"), Some("it is forced")));
    assert!(String::from_utf8(semgen.run(&["tune", "show"], 0).stdout).unwrap().contains("plain (forced)"));
    semgen.json(&["tune", "export", file]);
    semgen.json(&["tune", "off"]);
    assert!(semgen.json(&["tune", "explain", key])[0]["why"].as_str().unwrap().contains("off"));
    semgen.json(&["tune", "on"]);
    semgen.json(&["tune", "clear"]);
    assert_eq!(semgen.json(&["tune", "show"])["forced"].as_object().unwrap().len(), 0);
    assert_eq!(semgen.json(&["tune", "import", file])["forced"], 1);
    // Another adapter's table.
    let theirs = std::fs::read_to_string(file).unwrap().replacen("\"name\": \"", "\"name\": \"Another ", 1);
    std::fs::write(file, theirs).unwrap();
    assert!(semgen.refused(&["tune", "import", file]).contains("--force"));
    assert_eq!(semgen.json(&["tune", "import", file, "--force"])["forced"], 1);
    let small = ["--set", "model.base_channels=2", "--set", "cube.size=[16,16,8]", "--set", "discover.autoencoder.input=[16,16,8]"];
    let small = [&small[..], &["--set", "train.batch_size=1", "--set", "discover.autoencoder.batch_size=1"]].concat();
    let ran = semgen.json(&[&["tune", "run", "--budget", "1s"], &small[..]].concat());
    assert!(ran["summary"]["measured"].as_u64().unwrap() >= 1, "{ran}");
    let layer = semgen.json(&[&["tune", "explain", "--layer", "down_tr64.ops.1.conv1"], &small[..]].concat());
    assert!(!layer.as_array().unwrap().is_empty());
}

#[test]
fn a_run_keeps_the_variants_it_began_with() {
    let Some(ctx) = harness::trusted() else { return };
    let dir = tempfile::tempdir().unwrap();
    let (cache, config) = (dir.path().join("cache"), dir.path().join("tiny.toml"));
    std::fs::write(&config, TINY).unwrap();
    let semgen = Program::new(&cache);
    let parsed = Config::load(Some(&config), &[]).unwrap();
    let joint = Stage::pretraining(&parsed).pop().unwrap();
    let plan = Plan::new(&joint.graph(parsed.train.batch_size, Mode::Train).unwrap(), ctx.caps()).unwrap();
    let key = needs(&[("joint", &plan)]).remove(0).key;
    let [a, b] = ["a", "b"].map(|name| dir.path().join(name).to_string_lossy().into_owned());
    let (scans, config) = (crate::cli::scans().to_str().unwrap(), config.to_str().unwrap());
    let force = || semgen.run(&["tune", "force", &key, "plain"], 0);
    force();
    semgen.run(&["discover", scans, "--config", config, "--out", &a], 0);
    // The table changes between two stages of a run; the run does not.
    semgen.run(&["tune", "clear"], 0);
    semgen.run(&["pretrain", &a], 0);
    force();
    semgen.run(&["pretrain", scans, "--config", config, "--out", &b], 0);
    let of = |run: &str, file: &str| std::fs::read(std::path::Path::new(run).join(file)).unwrap();
    for file in ["choices.json", "checkpoints/last.safetensors", "discover/autoencoder/last.safetensors"] {
        assert!(of(&a, file) == of(&b, file), "{file} differs");
    }
    let kept: BTreeMap<String, String> = serde_json::from_slice(&of(&a, "choices.json")).unwrap();
    assert_eq!(kept, [(key, "plain".to_owned())].into());
}
