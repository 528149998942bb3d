//! The command line: one file per verb, and what they share.
//!
//! This is the only part of the library that writes to the standard streams: results go to the
//! output (with `--json` as one JSON object), everything else to the error stream. Exit status
//! 0 means success, 1 a failed or interrupted run, 2 wrong usage or input.

mod args;
mod bench;
mod compare;
mod demo;
mod devices;
mod discover;
mod doctor;
mod embed;
mod evaluate;
mod export;
mod finetune;
mod import;
mod info;
mod phantom;
mod plan;
mod predict;
mod prepare;
mod pretrain;
mod previews;
mod restore;
mod run;
mod scans;
mod stages;
mod stop;
mod summary;
mod text;
mod tune;
mod watch;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Parser, Subcommand};

use crate::error::Result;

/// Self-supervised pretraining of 3D networks for medical scans, on any graphics adapter.
#[derive(Debug, Parser)]
#[command(name = "semgen", version, about, max_term_width = 120, arg_required_else_help = true)]
struct Cli {
    #[command(flatten)]
    common: args::Common,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List the graphics adapters, what they can do, and which one is used
    Devices,
    /// Write synthetic chest-CT patients (NIfTI, with label maps)
    Phantom(phantom::Args),
    /// Bring scans to one orientation, voxel size, grid and range of values
    Prepare(prepare::Args),
    /// Find patients and places that look alike: the pseudo labels
    Discover(discover::Args),
    /// Pretrain a network on scans, a prepared store or a run's patterns
    Pretrain(pretrain::Args),
    /// Learn a task from labelled scans, from pretrained weights or from scratch
    Finetune(finetune::Args),
    /// Let a fine-tuned model answer for new scans: label maps, or a table of probabilities
    Predict(predict::Args),
    /// Write what an encoder says about scans or cubes: one row of numbers each
    Embed(embed::Args),
    /// Damage scans or cubes as pretraining does, and write what the network restores
    Restore(restore::Args),
    /// Hold predictions against the truth: label maps, probabilities of classes, marks
    Evaluate(evaluate::Args),
    /// Compare repeated runs: means, deviations, tests of the differences, a page
    Compare(compare::Args),
    /// Say what a run would need; nothing is allocated or run
    Plan(plan::Args),
    /// Say what is in a checkpoint, a scan, a prepared store, a manifest or a run
    Info(info::Args),
    /// Read weights from PyTorch files
    Import(import::Args),
    /// Write a model for PyTorch or as ONNX
    Export(export::Args),
    /// Check this machine: every kernel against its reference, a network against PyTorch's numbers
    Doctor(doctor::Args),
    /// Measure this machine and the kernels on it: peaks, operations, steps, a kernel of your own, comparisons
    Bench(bench::Args),
    /// Choose the fastest variant of each kernel by measurement: show, explain, run, force, export, import
    Tune(tune::Args),
    /// Show the whole method on synthetic patients in minutes, ending in a report page
    Demo(demo::Args),
}

/// Runs the program with the process's arguments; the exit status says how it went.
pub fn main() -> ExitCode {
    crate::gpu::without_display();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => return refused(&e),
    };
    // Warnings of the library; everything else goes through the observer.
    let _ = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::WARN)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .without_time()
        .with_target(false)
        .try_init();
    match dispatch(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            text::complain(&e.to_string());
            ExitCode::from(e.exit_code())
        }
    }
}

fn dispatch(Cli { common, verb }: Cli) -> Result<()> {
    match verb {
        Verb::Devices => devices::run(&common),
        Verb::Phantom(a) => phantom::run(&common, &a),
        Verb::Prepare(a) => prepare::run(&common, &a),
        Verb::Discover(a) => discover::run(&common, &a),
        Verb::Pretrain(a) => pretrain::run(&common, &a),
        Verb::Finetune(a) => finetune::run(&common, &a),
        Verb::Predict(a) => predict::run(&common, &a),
        Verb::Embed(a) => embed::run(&common, &a),
        Verb::Restore(a) => restore::run(&common, &a),
        Verb::Evaluate(a) => evaluate::run(&common, &a),
        Verb::Compare(a) => compare::run(&common, &a),
        Verb::Plan(a) => plan::run(&common, &a),
        Verb::Info(a) => info::run(&common, &a),
        Verb::Import(a) => import::run(&common, &a),
        Verb::Export(a) => export::run(&common, &a),
        Verb::Doctor(a) => doctor::run(&common, &a),
        Verb::Bench(a) => bench::run(&common, &a),
        Verb::Tune(a) => tune::run(&common, &a),
        Verb::Demo(a) => demo::run(&common, &a),
    }
}

/// Shows help, or says in one sentence what is wrong with the arguments.
fn refused(e: &clap::Error) -> ExitCode {
    if matches!(e.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand) {
        let _ = e.print();
        return ExitCode::from(if e.use_stderr() { 2 } else { 0 });
    }
    let rendered = e.render().to_string();
    let sentence: Vec<&str> = rendered
        .lines()
        .map(str::trim)
        .take_while(|l| !l.starts_with("Usage:") && !l.starts_with("For more information"))
        .filter(|l| !l.is_empty())
        .collect();
    text::complain(sentence.join(" ").trim_start_matches("error: "));
    ExitCode::from(2)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
