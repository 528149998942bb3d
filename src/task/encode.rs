//! What encoders and restoration heads make of cubes, whatever file their weights come from: a pretraining checkpoint, weights of
//! PyTorch, a fine-tuned model.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::Description;
use crate::config::{Activation, Align, Auto, Config, Norm, Preset};
use crate::data::recipe::Recipe;
use crate::error::{Error, Result};
use crate::gpu::{Buffer, Context};
use crate::graph::Graph;
use crate::interop::network::Network;
use crate::interop::weights;
use crate::model::{Mode, Spec};
use crate::plan::{Options, Plan, Session, Store};
use crate::train::checkpoint::{Named, load_state_dict};
use crate::train::network;
use crate::transform::{Augment, Draws, describe};

/// A network of a file.
#[derive(Clone, Debug)]
pub struct Encoder {
    /// The file.
    pub path: PathBuf,
    /// What its tensors tell.
    pub network: Network,
    /// The network's description.
    pub spec: Spec,
    /// Its tensors.
    pub tensors: Named,
    /// What it was fine-tuned for, if it was.
    pub task: Option<Description>,
    /// The settings that it was trained with, as far as the file tells; the defaults otherwise.
    pub config: Config,
    /// Whether the file tells the settings.
    pub told: bool,
}

impl Encoder {
    /// Reads a file, or the best weights of a run.
    ///
    /// # Errors
    /// [`Error::Input`] when there is no such file or no network of this family in it.
    pub fn load(path: &Path) -> Result<Self> {
        let path = weights::locate(path)?;
        let read = weights::read(&path)?;
        let wrong = |what: String| Error::input(&path, what);
        let network = Network::of(&read.tensors).map_err(wrong)?;
        let about: Option<Value> = read.metadata.as_deref().and_then(|m| serde_json::from_str(m).ok());
        let task = match about.as_ref().map(|a| &a["task"]) {
            None | Some(Value::Null) => None,
            Some(task) => Some(
                serde_json::from_value::<Description>(task.clone())
                    .map_err(|e| Error::input(&path, format!("describes its task in a way this program does not know ({e})")))?,
            ),
        };
        let config = about.as_ref().and_then(|a| Config::default().overlay_toml(a["config"].as_str()?).ok());
        let (told, mut config) = (config.is_some() || task.is_some(), config.unwrap_or_default());
        // The settings may leave the voxel size to the data.
        let recipe = about.as_ref().and_then(|a| serde_json::from_value::<Recipe>(a["recipe"].clone()).ok());
        if let Some(recipe) = recipe {
            config.prepare.spacing = Auto::Given(recipe.spacing);
        }
        if let Some(task) = &task {
            config.model = task.model.clone();
            config.cube.size = task.window;
        }
        let activation = match (network.activation, config.model.activation) {
            // Neither has tensors.
            (Activation::Relu, Activation::Elu) => Activation::Elu,
            (seen, _) => seen,
        };
        let spec = Spec {
            base: network.base,
            depth: network.depth,
            variant: network.variant,
            activation,
            norm: config.model.norm,
            channels: network.channels,
        };
        Ok(Self { path, network, spec, tensors: read.tensors, task, config, told })
    }

    /// How a scan is prepared: as the task says, or as `config` does; voxels of `spacing` mm where neither has a size.
    pub fn recipe(&self, config: &Config, spacing: [f64; 3]) -> Recipe {
        let p = &config.prepare;
        match &self.task {
            Some(task) => task.recipe.clone(),
            None => Recipe {
                modality: p.modality,
                window: p.window,
                mri: p.mri,
                align: Align::Grid,
                spacing: p.spacing.given().unwrap_or(spacing),
                grid: None,
            },
        }
    }

    /// A session of `graph` with the file's weights.
    fn session(&self, ctx: &Context, graph: &Graph) -> Result<(Session, Store)> {
        let store = Store::new(ctx, graph, 0)?;
        load_state_dict(ctx, &store, &self.tensors, true).map_err(|e| match e {
            Error::Failed(what) => Error::input(&self.path, what),
            other => other,
        })?;
        let session = Session::new(ctx, Plan::with(graph, ctx.caps(), &Options::of(ctx))?, &store)?;
        Ok((session, store))
    }

    /// Cubes of `size` that are given to the device at once.
    fn batch(&self, size: [usize; 3]) -> usize {
        match self.spec.norm {
            Norm::Batch => 1,
            Norm::Running => ((1 << 18) / size.iter().product::<usize>().max(1)).clamp(1, 8),
        }
    }
}

/// The mean of the deepest block over a cube: [`Spec::features`] numbers.
pub struct Features<'a> {
    ctx: &'a Context,
    session: Session,
    _store: Store,
    batch: usize,
    cube: usize,
    width: usize,
}

impl<'a> Features<'a> {
    /// For cubes of `size`.
    ///
    /// # Errors
    /// A size that the network cannot take, weights that are missing, what the device reports.
    pub fn new(ctx: &'a Context, encoder: &Encoder, size: [usize; 3]) -> Result<Self> {
        let batch = encoder.batch(size);
        let (session, store) = encoder.session(ctx, &network::features(&encoder.spec, batch, size)?)?;
        let cube = size.iter().product::<usize>() * encoder.spec.channels;
        Ok(Self { ctx, session, _store: store, batch, cube, width: encoder.spec.features() })
    }

    /// Numbers of a cube.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The features of cubes `[x][y][z][channel]`, row after row.
    ///
    /// # Errors
    /// What the device reports; features that are not finite.
    pub fn of(&self, cubes: &mut dyn Iterator<Item = Result<Vec<f32>>>) -> Result<Vec<f32>> {
        let mut out = Vec::new();
        loop {
            let mut batch = Vec::with_capacity(self.batch * self.cube);
            let mut n = 0;
            while n < self.batch
                && let Some(cube) = cubes.next()
            {
                batch.extend(cube?);
                n += 1;
            }
            if n == 0 {
                return Ok(out);
            }
            batch.resize(self.batch * self.cube, 0.0);
            self.ctx.upload(self.session.input("input")?, 0, &batch);
            self.session.run(self.ctx)?;
            let found: Vec<f32> = self.session.read(self.ctx, "features")?;
            let found = &found[..n * self.width];
            if found.iter().any(|v| !v.is_finite()) {
                return Err(Error::Failed("a feature is not a finite number; the encoder's weights are not usable".into()));
            }
            out.extend_from_slice(found);
        }
    }
}

/// Damages cubes as pretraining does, and restores them.
pub struct Restorer<'a> {
    ctx: &'a Context,
    session: Session,
    augment: Augment,
    target: Buffer,
    _store: Store,
    cube: usize,
}

/// A cube before, damaged and restored, `[x][y][z]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Restored {
    /// The cube, reversed where the damage includes that.
    pub before: Vec<f32>,
    /// What the network saw.
    pub damaged: Vec<f32>,
    /// What it made of that.
    pub restored: Vec<f32>,
    /// What was done, in words.
    pub what: String,
}

impl<'a> Restorer<'a> {
    /// For cubes of `size`, damaged as `preset` does with draws from `seed`.
    ///
    /// # Errors
    /// [`Error::Input`] for a network that restores nothing; as [`Features::new`].
    pub fn new(ctx: &'a Context, encoder: &Encoder, size: [usize; 3], preset: Preset, seed: u32) -> Result<Self> {
        let n = &encoder.network;
        let why = match (&encoder.task, n.restored) {
            (Some(task), _) => Some(format!("was fine-tuned to {} and restores nothing any more", task.kind.word())),
            (None, None) => Some(format!("is of the kind \"{}\" and has no decoder", n.word())),
            (None, Some(1)) if n.channels == 1 => None,
            (None, Some(outputs)) => Some(format!("has {} input and {outputs} output channels", n.channels)),
        };
        if let Some(why) = why {
            return Err(Error::input(&encoder.path, format!("{why}; restoring needs the checkpoint of a pretraining with its decoder")));
        }
        let mut g = Graph::new();
        let x = encoder.spec.input(&mut g, "input", 1, size);
        let encoded = encoder.spec.encoder(&mut g, x, Mode::Evaluate)?;
        let y = encoder.spec.restoration(&mut g, &encoded, n.skips, Mode::Evaluate)?;
        g.output("restored", y);
        let (session, store) = encoder.session(ctx, &g)?;
        let input = session.input("input")?;
        let target = ctx.buffer("semgen.target", input.bytes())?;
        let augment = Augment::new(ctx, preset, encoder.config.train.flip_axes, 1, size, seed, input, &target)?;
        Ok(Self { ctx, session, augment, target, _store: store, cube: size.iter().product() })
    }

    /// Damages `cube` with the draws of number `sample`, and restores it.
    ///
    /// # Errors
    /// What the device reports.
    pub fn restore(&self, cube: &[f32], sample: u32) -> Result<Restored> {
        self.augment.apply(self.ctx, cube, &[sample], Draws::Fixed)?;
        // The network may reuse the memory of its input.
        let damaged = self.ctx.read(self.session.input("input")?, 0, self.cube)?;
        let before = self.ctx.read(&self.target, 0, self.cube)?;
        self.session.run(self.ctx)?;
        let restored = self.session.read(self.ctx, "restored")?;
        Ok(Restored { before, damaged, restored, what: describe(&self.augment.draw(sample, Draws::Fixed)) })
    }
}
