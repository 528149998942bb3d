//! What the autoencoder says about every patient: one row of numbers each (method reference, 3.2).
//!
//! `train_features.npy` and `validation_features.npy` hold them, `n × width` f32 in the order of the
//! store; `features.json` is written last and says what they were computed from.

use std::io::Write;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use npyz::WriterBuilder;
use serde::{Deserialize, Serialize};

use super::autoencoder::{Scans, Trained, positions, stop};
use super::neighbours::nearest;
use crate::data::store::{Split, Store};
use crate::error::{Error, Result};
use crate::files;
use crate::gpu::Context;
use crate::plan::{Options, Plan, Session};
use crate::train::checkpoint::load_state_dict;
use crate::train::network;

/// Neighbours that [`neighbour_score`] looks at.
pub const SCORED: usize = 5;

const FORMAT: &str = "semantic-genesis features";
const NAMES: [&str; 2] = ["train_features.npy", "validation_features.npy"];
const ABOUT: &str = "features.json";

/// Features of all patients.
#[derive(Clone, Debug, PartialEq)]
pub struct Features {
    /// Numbers per patient.
    pub width: usize,
    /// Of the train scans, row after row.
    pub train: Vec<f32>,
    /// Of the validation scans.
    pub validation: Vec<f32>,
}

/// The content of `features.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct About {
    format: String,
    /// Hash of the prepared set.
    store: String,
    /// Hash of the autoencoder's weights.
    autoencoder: String,
    width: usize,
    /// SHA-256 of the two arrays' files.
    sha256: [String; 2],
}

impl Features {
    /// Computes the features of all scans with the running statistics of `trained`, `batch` scans at a time.
    ///
    /// # Errors
    /// A volume that cannot be read, features that are not finite, what the device reports;
    /// [`Error::Interrupted`].
    pub fn compute(ctx: &Context, trained: &Trained, scans: &Scans, store: &Store, batch: usize, interrupted: &AtomicBool) -> Result<Self> {
        let graph = network::features(&trained.spec, batch, scans.size())?;
        let weights = crate::plan::Store::new(ctx, &graph, 0)?;
        load_state_dict(ctx, &weights, &trained.weights, true)?;
        let session = Session::new(ctx, Plan::with(&graph, ctx.caps(), &Options::of(ctx))?, &weights)?;
        let width = trained.spec.features();
        let of = |split| -> Result<Vec<f32>> {
            let mut out = Vec::new();
            for chunk in positions(store, split).chunks(batch) {
                stop(interrupted, "describing the patients")?;
                let mut cubes = Vec::with_capacity(batch * scans.voxels());
                for i in chunk {
                    cubes.extend(scans.read(*i)?);
                }
                // The plan takes whole batches; what fills the last one is not looked at.
                cubes.resize(batch * scans.voxels(), 0.0);
                ctx.upload(session.input("input")?, 0, &cubes);
                session.run(ctx)?;
                let features: Vec<f32> = session.read(ctx, "features")?;
                for (i, row) in chunk.iter().zip(features.chunks_exact(width)) {
                    if let Some(v) = row.iter().find(|v| !v.is_finite()) {
                        return Err(Error::Failed(format!(
                            "a feature of scan {} is {v}: the autoencoder's weights are not usable; lower discover.autoencoder.learning_rate and train it again",
                            store.scans()[*i].id
                        )));
                    }
                    out.extend_from_slice(row);
                }
            }
            Ok(out)
        };
        Ok(Self { width, train: of(Split::Train)?, validation: of(Split::Validation)? })
    }

    /// Whether all patients have the same features, so that neighbours mean nothing.
    pub fn alike(&self) -> bool {
        let Some(first) = self.train.get(..self.width) else { return true };
        self.train.chunks_exact(self.width).chain(self.validation.chunks_exact(self.width)).all(|row| row == first)
    }

    /// The rows of all scans in the order of `store`.
    pub fn all(&self, store: &Store) -> Vec<f32> {
        let (mut train, mut validation) = (self.train.chunks_exact(self.width), self.validation.chunks_exact(self.width));
        let next = |split| if split == Split::Train { train.next() } else { validation.next() };
        store.scans().iter().map(|s| s.split).filter_map(next).flatten().copied().collect()
    }

    /// Writes the features to `out`.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn save(&self, out: &Path, store: &Store, trained: &Trained) -> Result<()> {
        let mut sha256 = [String::new(), String::new()];
        for ((name, data), sha) in NAMES.iter().zip([&self.train, &self.validation]).zip(&mut sha256) {
            let path = out.join(name);
            let bytes = npy(data, self.width).map_err(Error::io("write", &path))?;
            *sha = files::sha256_hex(&bytes);
            files::write_bytes(&path, &bytes)?;
        }
        let about = About {
            format: FORMAT.to_owned(),
            store: store.hash().to_owned(),
            autoencoder: trained.hash.clone(),
            width: self.width,
            sha256,
        };
        files::write_atomic(&out.join(ABOUT), |f| {
            serde_json::to_writer_pretty(&mut *f, &about)?;
            writeln!(f)
        })
    }

    /// The features in `out` if they were computed from `store` by `trained`, and none of the files was changed.
    pub fn stored(out: &Path, store: &Store, trained: &Trained) -> Option<Self> {
        let (about, features) = read(out).ok()?;
        (about.store == store.hash() && about.autoencoder == trained.hash).then_some(features)
    }

    /// Reads the features in `out`.
    ///
    /// # Errors
    /// Missing files, and files that are not the ones that `features.json` describes.
    pub fn load(out: &Path) -> Result<Self> {
        read(out).map(|r| r.1)
    }
}

fn read(out: &Path) -> Result<(About, Features)> {
    let path = out.join(ABOUT);
    let text = std::fs::read(&path).map_err(Error::io("read", &path))?;
    let again = "run `semgen discover` again";
    let about: About =
        serde_json::from_slice(&text).map_err(|e| Error::input(&path, format!("does not describe features ({e}); {again}")))?;
    let array = |i: usize| -> Result<Vec<f32>> {
        let path = out.join(NAMES[i]);
        let bytes = std::fs::read(&path).map_err(Error::io("read", &path))?;
        if files::sha256_hex(&bytes) != about.sha256[i] {
            return Err(Error::input(&path, format!("is not the file that {ABOUT} describes; {again}")));
        }
        let damaged = |e: std::io::Error| Error::input(&path, format!("is no array of features ({e}); {again}"));
        let file = npyz::NpyFile::new(&bytes[..]).map_err(damaged)?;
        if file.shape().len() != 2 || file.shape()[1] != about.width as u64 || about.width == 0 {
            return Err(Error::input(&path, format!("has shape {:?}, expected rows of {}; {again}", file.shape(), about.width)));
        }
        file.into_vec().map_err(damaged)
    };
    if about.format != FORMAT {
        return Err(Error::input(&path, format!("has the format {:?}, expected {FORMAT:?}; {again}", about.format)));
    }
    let features = Features { width: about.width, train: array(0)?, validation: array(1)? };
    Ok((about, features))
}

/// The bytes of a `.npy` file of rows of `width`.
///
/// # Errors
/// A width that does not divide the data.
pub fn npy(data: &[f32], width: usize) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let shape = [(data.len() / width) as u64, width as u64];
    let mut writer = npyz::WriteOptions::new().default_dtype().shape(&shape).writer(&mut bytes).begin_nd()?;
    writer.extend(data.iter().copied())?;
    writer.finish()?;
    Ok(bytes)
}

/// How well features tell types of patients apart: the share of every patient's five nearest
/// neighbours (itself left out; fewer if there are fewer others) that are of its type.
///
/// `features` holds one row for each of `types`.
///
/// # Errors
/// Fewer than two patients, features that do not make one row a patient or are not finite.
pub fn neighbour_score<T: PartialEq>(features: &[f32], types: &[T]) -> Result<f64> {
    let n = types.len();
    if n < 2 || features.is_empty() || !features.len().is_multiple_of(n) {
        return Err(Error::shape("neighbour_score", format!("{} features do not describe {n} patients (at least 2)", features.len())));
    }
    let width = features.len() / n;
    let k = SCORED.min(n - 1);
    let mut same = 0;
    for (i, row) in features.chunks_exact(width).enumerate() {
        let others = nearest(row, features, width, k + 1)?.into_iter().map(|(j, _)| j as usize).filter(|&j| j != i);
        same += others.take(k).filter(|&j| types[j] == types[i]).count();
    }
    Ok(same as f64 / (n * k) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_that_lie_apart_score_1_and_mixed_ones_their_share() {
        // Two clumps of six on a line.
        let features: Vec<f32> = (0..12u8).map(|i| f32::from(i % 6) * 0.01 + f32::from(i / 6) * 10.0).collect();
        let apart: Vec<u8> = (0..12).map(|i| i / 6).collect();
        assert_eq!(neighbour_score(&features, &apart).unwrap(), 1.0);
        // In every clump three of each type: two of the five others are alike.
        let mixed: Vec<&str> = (0..12).map(|i| ["a", "b"][i % 2]).collect();
        assert!((neighbour_score(&features, &mixed).unwrap() - 0.4).abs() < 1e-12);
        // A patient is not its own neighbour, even among its duplicates.
        assert_eq!(neighbour_score(&[1.0; 3], &[1, 2, 3]).unwrap(), 0.0);
        assert_eq!(neighbour_score(&[0.0, 1.0], &[1, 1]).unwrap(), 1.0);
    }

    #[test]
    fn scores_of_what_cannot_be_scored_are_errors() {
        assert!(neighbour_score(&[1.0], &[1]).is_err());
        assert!(neighbour_score(&[1.0; 5], &[1, 2]).is_err());
        assert!(neighbour_score::<u8>(&[], &[]).is_err());
        assert!(neighbour_score(&[f32::NAN, 1.0], &[1, 2]).is_err());
    }

    #[test]
    fn identical_features_are_noticed() {
        let f = |train: &[f32], validation: &[f32]| Features { width: 2, train: train.to_vec(), validation: validation.to_vec() };
        assert!(f(&[1.0, 2.0, 1.0, 2.0], &[1.0, 2.0]).alike());
        assert!(!f(&[1.0, 2.0, 1.0, 2.0], &[1.0, 3.0]).alike());
    }
}
