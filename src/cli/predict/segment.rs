//! Label maps.

use std::time::Instant;

use serde_json::{Value, json};

use super::probabilities::Gathered;
use super::{Answers, Args};
use crate::cli::scans::{self, Case, Failures, new_folder};
use crate::cli::text;
use crate::data::image;
use crate::data::nifti::{Content, Geometry};
use crate::data::volume::spacing;
use crate::data::voxels::Kind;
use crate::error::{Error, Result};
use crate::files;
use crate::report::overlay;
use crate::report::progress::Progress;
use crate::task::predict::{Opened, Predictor, Scan};

/// Voxels that are written at a time.
const PIECE: usize = 1 << 16;

/// The names of what is written for a case.
fn names(case: &Case, a: &Args) -> Vec<String> {
    let more = [(a.probabilities, "_probabilities.nii.gz"), (a.preview, "_preview.png")];
    let more = more.into_iter().filter(|m| m.0).map(|m| m.1);
    std::iter::once(".nii.gz").chain(more).map(|end| format!("{}{end}", case.name)).collect()
}

pub(super) fn run(predictor: &Predictor<'_>, a: &Args, json: bool, failures: &mut Failures) -> Result<Answers> {
    let task = predictor.task();
    let cases = scans::cases(&a.scans, &task.channels, json)?;
    let mut written = std::collections::HashMap::new();
    for case in &cases {
        for name in names(case, a) {
            if let Some(other) = written.insert(name.to_lowercase(), case) {
                let what = format!("would be answered in {name}, as {} would; predict them into different folders", other.path().display());
                return Err(Error::input(case.path(), what));
            }
        }
    }
    new_folder(&a.out)?;
    let mut answers = Answers { json: Value::Array(Vec::new()), lines: Vec::new() };
    for (n, case) in cases.iter().enumerate() {
        let opened = case.open(&task.recipe, json).and_then(|o| Ok((o, image::geometry(case.path())?)));
        let Some((opened, geometry)) = failures.take(&case.name, opened, json)? else { continue };
        let title = if cases.len() > 1 { format!("{} ({} of {})", case.name, n + 1, cases.len()) } else { case.name.clone() };
        let (line, value) =
            one(predictor, a, case, &opened, &geometry, Progress::new(title, predictor.windows(opened.size()) as u64, json))?;
        answers.lines.push(line);
        if let Value::Array(list) = &mut answers.json {
            list.push(value);
        }
    }
    Ok(answers)
}

/// Answers for one scan.
fn one(
    predictor: &Predictor<'_>,
    a: &Args,
    case: &Case,
    opened: &Opened,
    geometry: &Geometry,
    mut progress: Progress,
) -> Result<(String, Value)> {
    let begun = Instant::now();
    let task = predictor.task();
    let target = opened.target()?;
    let of = |end: &str| a.out.join(format!("{}{end}", case.name));
    let mut gathered = match a.probabilities {
        true => Some(Gathered::new(&of("_probabilities.nii.gz"), target.size, task.outputs())?),
        false => None,
    };
    let mut classes: Vec<u16> = Vec::with_capacity(target.size.iter().product());
    let mut done = 0;
    predictor.segment(
        opened,
        &target,
        &mut |windows| {
            done += windows as u64;
            progress.set(done, "");
        },
        &mut |slice| {
            classes.extend_from_slice(slice.classes);
            gathered.as_mut().map_or(Ok(()), |g| g.take(slice.k, slice.probabilities))
        },
    )?;
    let largest = task.values.iter().copied().max().unwrap_or(0);
    let kind = match largest {
        0..=0xff => Kind::U8,
        0x100..=0xffff => Kind::U16,
        _ => Kind::U32,
    };
    let path = of(".nii.gz");
    let content = Content { size: target.size, volumes: 1, kind, labels: true };
    geometry.write(&path, content, |out| {
        for piece in classes.chunks(PIECE) {
            let values = piece.iter().map(|&c| task.values[usize::from(c)].to_le_bytes());
            let bytes: Vec<u8> = values.flat_map(|v| v.into_iter().take(kind.bytes())).collect();
            out.write_all(&bytes)?;
        }
        Ok(())
    })?;
    let mut value = json!({ "id": case.name, "labels": path.to_string_lossy(), "size": target.size });
    if let Some(gathered) = gathered {
        let path = of("_probabilities.nii.gz");
        gathered.finish(&path, geometry)?;
        value["probabilities"] = json!(path.to_string_lossy());
    }
    if a.preview {
        let path = of("_preview.png");
        let picture = overlay::sheet(&case.name, opened.values(), &classes, opened.frame(), &task.classes[1..])?;
        files::write_bytes(&path, &picture.encode()?)?;
        value["preview"] = json!(path.to_string_lossy());
    }
    let mut counts = vec![0u64; task.classes.len()];
    classes.iter().for_each(|&c| counts[usize::from(c)] += 1);
    let millilitres = spacing(&opened.frame().source_affine).iter().product::<f64>() / 1000.0;
    let volumes: Vec<(&String, f64)> = task.classes.iter().zip(&counts).skip(1).map(|(c, &n)| (c, n as f64 * millilitres)).collect();
    let seconds = begun.elapsed().as_secs_f64();
    value["windows"] = json!(done);
    value["seconds"] = json!(seconds);
    value["voxels"] = task.classes.iter().zip(&counts).map(|(c, n)| (c.clone(), json!(n))).collect::<serde_json::Map<_, _>>().into();
    value["millilitres"] = volumes.iter().map(|(c, v)| ((*c).clone(), json!(v))).collect::<serde_json::Map<_, _>>().into();
    let found: Vec<String> = volumes.iter().filter(|v| v.1 > 0.0).map(|(c, v)| format!("{c} {v:.1} ml")).collect();
    progress.finish(&format!("{} voxels, {done} windows", text::by(&target.size)));
    let found = if found.is_empty() { "nothing but background".to_owned() } else { found.join(", ") };
    Ok((format!("{}: {found}", path.display()), value))
}
