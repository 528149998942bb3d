//! Every setting of a run, with its default, its unit and where the default comes from.
//!
//! A configuration is the defaults, overlaid by a TOML file, overlaid by `key=value` pairs.
//! An unknown key is an error that names the nearest known one. A run directory keeps the
//! resolved, complete result as `config.toml`.

use std::path::Path;

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::error::{Error, Result};

/// A setting that the program derives from the data unless it is given.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Auto<T> {
    /// Derived from the data; written `"auto"`.
    Auto(AutoWord),
    /// Given by the user.
    Given(T),
}

/// The word `auto`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AutoWord {
    /// Derived from the data.
    Auto,
}

impl<T: Copy> Auto<T> {
    /// `"auto"`.
    pub const AUTO: Self = Self::Auto(AutoWord::Auto);

    /// The given value, if any.
    pub fn given(&self) -> Option<T> {
        match self {
            Self::Auto(_) => None,
            Self::Given(v) => Some(*v),
        }
    }
}

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum $name { $($(#[$vdoc])* #[serde(rename = $word)] $variant,)+ }

        impl $name {
            /// The word used for it in files and on the command line.
            pub fn word(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }
        }
    };
}

words! {
    /// What kind of scan; decides the intensity rule.
    Modality {
        /// Computed tomography in Hounsfield units: `[-1000, 1000]` becomes `[0, 1]`.
        Ct = "ct",
        /// Magnetic resonance: see [`Mri`].
        Mri = "mri",
        /// A window given by `prepare.window`.
        Window = "window",
    }
}
words! {
    /// Intensity rule for magnetic resonance.
    Mri {
        /// Each scan's minimum and maximum become 0 and 1.
        MinMax = "minmax",
        /// `[0, 4000]` becomes `[0, 1]`.
        Clip4000 = "clip4000",
        /// The 0.5 and 99.5 percentiles of the non-zero voxels become 0 and 1.
        Percentile = "percentile",
    }
}
words! {
    /// What is brought to the centre of the common grid.
    Align {
        /// The centre of the scan's own grid.
        Grid = "grid",
        /// The centre of the body (voxels above -300 HU for CT, the upper half of the range else).
        Body = "body",
    }
}
words! {
    /// Network variant.
    Variant {
        /// The published PyTorch network: transposed convolutions, batch-norm ε 1e-5.
        PyTorch = "pytorch",
        /// The published Keras network: nearest upsampling, batch-norm ε 1e-3.
        Keras = "keras",
    }
}
words! {
    /// Activation after every batch norm.
    Activation {
        /// max(0, x).
        Relu = "relu",
        /// One learned slope per channel, initially 0.25.
        PRelu = "prelu",
        /// x or exp(x) - 1.
        Elu = "elu",
    }
}
words! {
    /// Batch-norm statistics used outside training.
    Norm {
        /// The running statistics (default).
        Running = "running",
        /// The batch's own, as the published PyTorch code does.
        Batch = "batch",
    }
}
words! {
    /// Set of image transformations; see the table in the README.
    Preset {
        /// As the paper's text describes: one of four per crop, complex shapes.
        Paper = "paper",
        /// As the published PyTorch code runs.
        OfficialPyTorch = "official-pytorch",
        /// As the published Keras code runs.
        OfficialKeras = "official-keras",
        /// The restoration-only predecessor.
        ModelsGenesis = "models-genesis",
        /// No distortion (for autoencoding and checks).
        None = "none",
    }
}
words! {
    /// Axes that random flips may reverse.
    FlipAxes {
        /// x and y, as published.
        Xy = "xy",
        /// All three.
        Xyz = "xyz",
    }
}
words! {
    /// How validation crops are distorted.
    ValTransform {
        /// The same draws in every epoch, so that losses compare.
        Fixed = "fixed",
        /// New draws in every epoch, as published.
        Random = "random",
        /// Not at all.
        None = "none",
    }
}
words! {
    /// Which place of a patient is acceptable for a class.
    Filter {
        /// `lung` for CT, `foreground` for MRI, `none` otherwise.
        Auto = "auto",
        /// At most 15 % of the crop at or above -150 HU.
        Lung = "lung",
        /// At least half of the crop above 0.
        Foreground = "foreground",
        /// Every place.
        None = "none",
    }
}
words! {
    /// Which reference patient a class starts from.
    Reference {
        /// A new unused one for every class.
        PerClass = "per_class",
        /// One for all classes.
        Shared = "shared",
    }
}
words! {
    /// Optimiser.
    Optimiser {
        /// Adam (Kingma and Ba, 2015), β 0.9 and 0.999, ε 1e-8.
        Adam = "adam",
        /// Adam with decoupled weight decay (Loshchilov and Hutter, 2019).
        AdamW = "adamw",
        /// Stochastic gradient descent with momentum.
        Sgd = "sgd",
    }
}
words! {
    /// Which variants of the kernels are used.
    Tune {
        /// The fastest by the table that `semgen tune` keeps, defaults where it has no entry.
        Cached = "cached",
        /// The defaults.
        Off = "off",
        /// As `cached`, after measuring what the table lacks, for at most `tune_seconds`.
        Full = "full",
    }
}
words! {
    /// Learning-rate schedule.
    Schedule {
        /// × `factor` every `step_epochs` epochs.
        Step = "step",
        /// × `factor` after `plateau_patience` epochs without a validation loss lower by `min_delta`.
        Plateau = "plateau",
        /// No change.
        Constant = "constant",
    }
}

words! {
    /// How activations are stored while training.
    Precision {
        /// In 32 bits: the reference.
        F32 = "f32",
        /// Activations and their gradients in 16 bits, with a dynamic loss scale; arithmetic, parameters, their
        /// gradients, statistics, losses and the optimiser stay in 32 bits. Needs an adapter with 16-bit floats.
        Mixed = "mixed",
    }
}

words! {
    /// What segmentation minimises.
    SegmentationLoss {
        /// Soft Dice over the batch, averaged over the classes but the background.
        Dice = "dice",
        /// Cross-entropy of every voxel.
        CrossEntropy = "ce",
        /// The sum of both.
        Both = "dice+ce",
    }
}
words! {
    /// How much each class counts in a cross-entropy.
    ClassWeights {
        /// All alike.
        None = "none",
        /// In inverse proportion to how often it occurs in the training part, at most 100 times the least.
        Balanced = "balanced",
    }
}
words! {
    /// Axes along which training examples are reversed at random, each with probability one half.
    Flip {
        /// None.
        None = "none",
        /// x: left and right.
        X = "x",
        /// x and y.
        Xy = "xy",
        /// All three.
        Xyz = "xyz",
    }
}

impl Flip {
    /// Whether each axis may be reversed.
    pub fn axes(self) -> [bool; 3] {
        [self != Self::None, matches!(self, Self::Xy | Self::Xyz), self == Self::Xyz]
    }
}

/// All settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Seed of every random draw (non-negative).
    pub seed: u32,
    /// From scan files to one common grid.
    pub prepare: Prepare,
    /// The network.
    pub model: Model,
    /// The crops that are learnt from.
    pub cube: Cube,
    /// From patients to pseudo labels.
    pub discover: Discover,
    /// Optimisation.
    pub train: Train,
    /// Loss weights.
    pub loss: Loss,
    /// Learning a target task; the other sections hold there too.
    pub finetune: Finetune,
}

/// From scan files to one common grid with values in `[0, 1]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prepare {
    /// Kind of scan.
    pub modality: Modality,
    /// Lower and upper intensity for `modality = "window"`.
    pub window: [f32; 2],
    /// Intensity rule for `modality = "mri"`.
    pub mri: Mri,
    /// Voxel size in mm along left, posterior, superior; `"auto"`: the set's median.
    pub spacing: Auto<[f64; 3]>,
    /// Grid of every prepared volume; `"auto"`: the set's median size, rounded up to a multiple of 8.
    pub grid: Auto<[usize; 3]>,
    /// What is centred on the grid.
    pub align: Align,
    /// Share of the scans held out for validation (at least one scan).
    pub validation_fraction: f32,
    /// Report and skip unusable scans instead of failing.
    pub keep_going: bool,
}

/// The network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// Channels of the first convolution; the deepest block has 16 times as many.
    pub base_channels: usize,
    /// Number of pseudo classes C.
    pub classes: usize,
    /// Levels of the encoder including the deepest (the published networks have 4).
    pub depth: usize,
    /// Published variant.
    pub variant: Variant,
    /// Activation.
    pub activation: Activation,
    /// Batch-norm statistics used outside training.
    pub norm: Norm,
}

/// The crops that are learnt from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cube {
    /// Size along x, y, z in voxels; each divisible by 2^(depth-1).
    pub size: [usize; 3],
    /// Add crops at two randomly scaled and shifted windows (resolutions 2 and 3).
    pub multi_resolution: bool,
}

/// From patients to pseudo labels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Discover {
    /// Train patients per class, the reference included (k).
    pub neighbours: usize,
    /// Validation patients per class.
    pub validation_neighbours: usize,
    /// Reference policy.
    pub reference: Reference,
    /// Voxels kept free at both ends of each axis.
    pub margin: [usize; 3],
    /// Voxels kept free behind the crop along each axis.
    pub look_ahead: [usize; 3],
    /// Least distance in voxels between two coordinates.
    pub min_distance: f32,
    /// Tissue filter.
    pub filter: Filter,
    /// Value from which a voxel counts as tissue in the lung filter (0.425 is -150 HU).
    pub tissue_threshold: f32,
    /// Largest tissue share that the lung filter accepts.
    pub tissue_fraction: f32,
    /// Draws per reference before it is dropped.
    pub draws: usize,
    /// Also write every cube to disk (`cubes/*.npy`).
    pub write_cubes: bool,
    /// The autoencoder that describes patients.
    pub autoencoder: Autoencoder,
}

/// The autoencoder that describes patients.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Autoencoder {
    /// Grid that whole volumes are resized to; `"auto"`: twice `cube.size` (published: 128×128×64 for cubes of 64×64×32).
    pub input: Auto<[usize; 3]>,
    /// Channels of the first convolution, features are 16 times as wide; `"auto"`: `model.base_channels` (published: 32, 512).
    pub base_channels: Auto<usize>,
    /// Skip connections (published default of the code; off here, see the README).
    pub skips: bool,
    /// Scans per step.
    pub batch_size: usize,
    /// Scans that are on the device at once, as `train.micro_batch`: the largest divisor of a step's scans up to it.
    pub micro_batch: Auto<usize>,
    /// Learning rate of Adam.
    pub learning_rate: f32,
    /// Most epochs.
    pub epochs: usize,
    /// Most optimiser steps; 0 means no bound.
    pub max_steps: usize,
    /// Epochs without a lower validation loss before the rate is halved.
    pub plateau_patience: usize,
    /// Epochs without a lower validation loss before training stops.
    pub stop_patience: usize,
}

/// Optimisation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Train {
    /// Image transformations.
    pub preset: Preset,
    /// Axes of the flips of `models-genesis`.
    pub flip_axes: FlipAxes,
    /// Distortion of validation crops.
    pub val_transform: ValTransform,
    /// Crops per step.
    pub batch_size: usize,
    /// Storage of activations in both phases; the autoencoder of `discover` is always trained in f32.
    pub precision: Precision,
    /// Crops that are on the device at once, a divisor of `batch_size`: a step adds up the gradients of its parts. Batch norm
    /// sees one part at a time. `"auto"`: the largest that the adapter and `memory` allow; runs record what it came to.
    pub micro_batch: Auto<usize>,
    /// Device memory that may be used, in GiB; `"auto"`: three quarters of the free memory on a CPU adapter, else no bound.
    pub memory: Auto<f64>,
    /// Compute cheap activations a second time instead of keeping them: less memory, the same results; `"auto"`: where
    /// `memory` allows a larger micro-batch that way.
    pub recompute: Auto<bool>,
    /// Most optimiser steps over both phases; 0 means no bound.
    pub max_steps: usize,
    /// Most epochs of the joint phase.
    pub epochs: usize,
    /// Most epochs of the classification phase; 0 skips it. With `max_steps`, it takes at most half of them.
    pub classification_epochs: usize,
    /// Optimiser.
    pub optimiser: Optimiser,
    /// Learning rate.
    pub learning_rate: f32,
    /// Momentum of `sgd`.
    pub momentum: f32,
    /// Weight decay of `adamw` (decoupled) and `sgd`.
    pub weight_decay: f32,
    /// Largest gradient norm; 0 means no clipping.
    pub clip_norm: f32,
    /// Learning-rate schedule.
    pub schedule: Schedule,
    /// Factor applied by the schedule.
    pub factor: f32,
    /// Epochs between two reductions of `step`.
    pub step_epochs: usize,
    /// Epochs that `plateau` waits.
    pub plateau_patience: usize,
    /// Improvement that `plateau` asks for.
    pub min_delta: f32,
    /// Lower bound of the learning rate.
    pub min_learning_rate: f32,
    /// Epochs without a lower validation loss before a phase ends.
    pub stop_patience: usize,
    /// Steps between two checkpoints besides the one at the end of each epoch; 0 means none.
    pub checkpoint_steps: usize,
    /// Which variants of the kernels are used; a run keeps those it began with.
    pub tune: Tune,
    /// Most seconds of measuring before a run with `tune = "full"`.
    pub tune_seconds: usize,
}

/// Learning a target task from labelled data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Finetune {
    /// Factor of the encoder's learning rate: 1 trains it like the rest, 0 leaves it as it was loaded, its running
    /// statistics included.
    pub encoder_rate: f32,
    /// Loss of segmentation.
    pub loss: SegmentationLoss,
    /// Class weights of the cross-entropy.
    pub class_weights: ClassWeights,
    /// Share of training windows that are laid around a voxel of a random class of the scan that is not background.
    pub foreground: f32,
    /// Windows taken of each scan in an epoch of segmentation.
    pub windows: usize,
    /// Random flips.
    pub flip: Flip,
    /// Strength of random changes of values in `[0, 1]`, each with probability one half: 0 for none, 1 for contrast by up to ±15 %,
    /// brightness by up to ±0.05, a gamma between 0.82 and 1.22, noise of a deviation up to 0.02.
    pub intensity: f32,
    /// Share of the labelled training cases that are used, at least one of each class; the cases of a smaller share are among those of
    /// a larger.
    pub fraction: f32,
    /// Share of the cases, whole groups of them, to choose the best model by, where the data do not say; at least one.
    pub validation_fraction: f32,
    /// Share of the cases, whole groups of them, to report on, where the data do not say; 0 for none.
    pub test_fraction: f32,
    /// Parts of a cross-validation; 0 divides by the fractions above. Part `fold` is reported on, the next one chooses the model.
    pub folds: usize,
    /// Which of the folds, from 0.
    pub fold: usize,
    /// Classification with two classes: negatives used in an epoch for each positive, drawn anew; 0 for all.
    pub negatives_per_positive: f32,
    /// When the finished model is measured, average its probabilities over all flips that `flip` allows.
    pub test_flips: bool,
}

/// Weights of the joint loss.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Loss {
    /// Weight of the mean squared restoration error.
    pub restoration: f32,
    /// Weight of the cross-entropy.
    pub classification: f32,
}

impl Default for Config {
    /// The published settings; see each field.
    fn default() -> Self {
        Self {
            seed: 0,
            prepare: Prepare {
                modality: Modality::Ct,
                window: [0.0, 1.0],
                mri: Mri::MinMax,
                spacing: Auto::AUTO,
                grid: Auto::AUTO,
                align: Align::Grid,
                validation_fraction: 0.15,
                keep_going: false,
            },
            model: Model {
                base_channels: 32,
                classes: 44,
                depth: 4,
                variant: Variant::PyTorch,
                activation: Activation::Relu,
                norm: Norm::Running,
            },
            cube: Cube { size: [64, 64, 32], multi_resolution: true },
            discover: Discover {
                neighbours: 200,
                validation_neighbours: 30,
                reference: Reference::PerClass,
                margin: [100, 100, 30],
                look_ahead: [0, 0, 3],
                min_distance: 5.0,
                filter: Filter::Auto,
                tissue_threshold: 0.425,
                tissue_fraction: 0.15,
                draws: 200,
                write_cubes: false,
                autoencoder: Autoencoder {
                    input: Auto::AUTO,
                    base_channels: Auto::AUTO,
                    skips: false,
                    batch_size: 8,
                    micro_batch: Auto::AUTO,
                    learning_rate: 1e-3,
                    epochs: 10_000,
                    max_steps: 0,
                    plateau_patience: 20,
                    stop_patience: 50,
                },
            },
            train: Train {
                preset: Preset::Paper,
                flip_axes: FlipAxes::Xy,
                val_transform: ValTransform::Fixed,
                batch_size: 12,
                precision: Precision::F32,
                micro_batch: Auto::AUTO,
                memory: Auto::AUTO,
                recompute: Auto::Given(false),
                max_steps: 0,
                epochs: 10_000,
                classification_epochs: 10_000,
                optimiser: Optimiser::Adam,
                learning_rate: 1e-3,
                momentum: 0.9,
                weight_decay: 0.0,
                clip_norm: 0.0,
                schedule: Schedule::Step,
                factor: 0.5,
                step_epochs: 40,
                plateau_patience: 20,
                min_delta: 1e-4,
                min_learning_rate: 1e-6,
                stop_patience: 50,
                checkpoint_steps: 0,
                tune: Tune::Cached,
                tune_seconds: 60,
            },
            loss: Loss { restoration: 1.0, classification: 0.01 },
            finetune: Finetune {
                encoder_rate: 1.0,
                loss: SegmentationLoss::Both,
                class_weights: ClassWeights::None,
                foreground: 0.5,
                windows: 4,
                flip: Flip::Xyz,
                intensity: 1.0,
                fraction: 1.0,
                validation_fraction: 0.15,
                test_fraction: 0.15,
                folds: 0,
                fold: 0,
                negatives_per_positive: 0.0,
                test_flips: false,
            },
        }
    }
}

impl Config {
    /// Defaults, overlaid by `file` and then by `sets` (`key=value`, dotted keys).
    ///
    /// # Errors
    /// An unreadable file, a syntax error, an unknown key (with the nearest known one), a value
    /// of the wrong type or out of range.
    pub fn load(file: Option<&Path>, sets: &[String]) -> Result<Self> {
        Self::default().overlay(file, sets)
    }

    /// This configuration, overlaid by `file` and then by `sets`.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn overlay(self, file: Option<&Path>, sets: &[String]) -> Result<Self> {
        let mut config = match file {
            Some(path) => {
                let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
                self.overlay_toml(&text).map_err(|e| Error::input(path, e.to_string()))?
            }
            None => self,
        };
        for set in sets {
            let (key, text) = set
                .split_once('=')
                .ok_or_else(|| Error::Usage(format!("--set {set}: expected KEY=VALUE, for example --set train.batch_size=8")))?;
            let (key, text) = (key.trim(), text.trim());
            // A bare word such as `paper` is a string; anything that parses as TOML is taken as such.
            let value = format!("v = {text}")
                .parse::<Table>()
                .ok()
                .and_then(|mut t| t.remove("v"))
                .unwrap_or_else(|| Value::String(text.to_owned()));
            config = config.with(key, value)?;
        }
        config.validate()?;
        Ok(config)
    }

    /// This configuration, overlaid by the settings in `text`; relations between settings are not checked.
    ///
    /// # Errors
    /// A syntax error with its line, an unknown key, a value of the wrong type.
    pub fn overlay_toml(self, text: &str) -> Result<Self> {
        let table: Table = text.parse().map_err(|e: toml::de::Error| {
            let line = 1 + e.span().map_or(0, |s| text.bytes().take(s.start).filter(|&b| b == b'\n').count());
            Error::Usage(format!("line {line} is not TOML ({})", e.message().trim()))
        })?;
        leaves(&table).into_iter().try_fold(self, |config, (key, value)| config.with(&key, value))
    }

    /// Grid that the autoencoder sees.
    pub fn autoencoder_input(&self) -> [usize; 3] {
        self.discover.autoencoder.input.given().unwrap_or_else(|| self.cube.size.map(|s| (2 * s).min(512)))
    }

    /// Channels of the autoencoder's first convolution.
    pub fn autoencoder_base(&self) -> usize {
        self.discover.autoencoder.base_channels.given().unwrap_or(self.model.base_channels)
    }

    /// The autoencoder's settings with nothing left to derive.
    #[must_use]
    pub fn autoencoder(&self) -> Autoencoder {
        let (input, base_channels) = (Auto::Given(self.autoencoder_input()), Auto::Given(self.autoencoder_base()));
        Autoencoder { input, base_channels, ..self.discover.autoencoder.clone() }
    }

    /// The complete configuration as TOML.
    ///
    /// # Panics
    /// Never: every field is representable in TOML.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("a configuration is representable in TOML")
    }

    fn with(&self, key: &str, value: Value) -> Result<Self> {
        let mut table = Table::try_from(self).map_err(|e| Error::Usage(e.to_string()))?;
        let known = leaves(&table);
        if !known.iter().any(|(k, _)| k == key) {
            let near = known
                .iter()
                .map(|(k, _)| (nearness(k, key), k))
                .max_by(|a, b| a.0.total_cmp(&b.0))
                .map_or(String::new(), |(_, k)| format!("; did you mean `{k}`?"));
            return Err(Error::Usage(format!("unknown configuration key `{key}`{near}")));
        }
        let shown = value.to_string();
        let mut slot = &mut table;
        let mut parts = key.split('.').peekable();
        while let Some(part) = parts.next() {
            if parts.peek().is_none() {
                // Whole numbers are welcome where a real one is expected.
                let value = match (slot.get(part), value) {
                    (Some(Value::Float(_)), Value::Integer(i)) => Value::Float(i as f64),
                    (_, Value::Integer(i)) if key == "train.memory" => Value::Float(i as f64),
                    (_, v) => v,
                };
                slot.insert(part.to_owned(), value);
                break;
            }
            slot = match slot.get_mut(part) {
                Some(Value::Table(t)) => t,
                _ => return Err(Error::Usage(format!("unknown configuration key `{key}`"))),
            };
        }
        table.try_into().map_err(|e: toml::de::Error| {
            let why = e.message().trim();
            Error::Usage(format!("configuration key `{key}`: `{shown}` is not a valid value ({why})"))
        })
    }

    /// Checks ranges and the relations between settings.
    ///
    /// # Errors
    /// Names the first key whose value cannot work.
    pub fn validate(&self) -> Result<()> {
        let bad = |key: &str, what: String| Err(Error::Usage(format!("configuration key `{key}`: {what}")));
        let (m, t, d) = (&self.model, &self.train, &self.discover);
        if m.base_channels == 0 || m.base_channels > 1024 {
            return bad("model.base_channels", format!("{} is outside 1..=1024", m.base_channels));
        }
        if m.classes < 2 {
            return bad("model.classes", format!("{} classes cannot be told apart; at least 2 are needed", m.classes));
        }
        if !(1..=6).contains(&m.depth) {
            return bad("model.depth", format!("{} is outside 1..=6", m.depth));
        }
        let unit = 1usize << (m.depth - 1);
        if self.cube.size.iter().any(|&s| s == 0 || s % unit != 0 || s > 512) {
            return bad(
                "cube.size",
                format!("{:?} must be multiples of {unit} up to 512 (the encoder halves each axis {} times)", self.cube.size, m.depth - 1),
            );
        }
        let ae = &d.autoencoder;
        if let Some(input) = ae.input.given()
            && input.iter().any(|&s| s == 0 || s % unit != 0 || s > 512)
        {
            return bad("discover.autoencoder.input", format!("{input:?} must be multiples of {unit} up to 512"));
        }
        for (key, v) in [
            ("train.batch_size", t.batch_size),
            ("discover.autoencoder.batch_size", ae.batch_size),
            ("discover.autoencoder.base_channels", self.autoencoder_base()),
            ("discover.neighbours", d.neighbours),
            ("discover.validation_neighbours", d.validation_neighbours),
            ("discover.draws", d.draws),
            ("train.epochs", t.epochs),
            ("train.step_epochs", t.step_epochs),
            ("train.plateau_patience", t.plateau_patience),
            ("train.stop_patience", t.stop_patience),
        ] {
            if v == 0 {
                return bad(key, "0 is too small; at least 1 is needed".into());
            }
        }
        for (key, v) in [("train.batch_size", t.batch_size), ("discover.autoencoder.batch_size", ae.batch_size)] {
            if v > 65_536 {
                return bad(key, format!("{v} is too large; at most 65536 samples make a step"));
            }
        }
        if let Some(m) = t.micro_batch.given()
            && (m == 0 || !t.batch_size.is_multiple_of(m))
        {
            let what = "give a divisor, or \"auto\" for the largest that fits";
            return bad("train.micro_batch", format!("{m} does not divide train.batch_size = {}; {what}", t.batch_size));
        }
        if ae.micro_batch.given() == Some(0) {
            return bad("discover.autoencoder.micro_batch", "0 is too small; at least 1 is needed".into());
        }
        if let Some(m) = t.memory.given()
            && !(m > 0.0 && m.is_finite())
        {
            return bad("train.memory", format!("{m} GiB must be positive"));
        }
        if d.draws > 1_000_000 {
            return bad("discover.draws", format!("{} is too large; more than 1000000 draws find no place that fewer do not", d.draws));
        }
        for (key, v) in [("train.learning_rate", t.learning_rate), ("discover.autoencoder.learning_rate", ae.learning_rate)] {
            if !(v > 0.0 && v.is_finite()) {
                return bad(key, format!("{v} must be positive"));
            }
        }
        for (key, v) in [
            ("train.momentum", t.momentum),
            ("train.weight_decay", t.weight_decay),
            ("train.clip_norm", t.clip_norm),
            ("train.min_delta", t.min_delta),
            ("train.min_learning_rate", t.min_learning_rate),
            ("loss.restoration", self.loss.restoration),
            ("loss.classification", self.loss.classification),
            ("discover.min_distance", d.min_distance),
            ("finetune.encoder_rate", self.finetune.encoder_rate),
            ("finetune.negatives_per_positive", self.finetune.negatives_per_positive),
        ] {
            if !(v >= 0.0 && v.is_finite()) {
                return bad(key, format!("{v} must not be negative"));
            }
        }
        if !(t.factor > 0.0 && t.factor <= 1.0) {
            return bad("train.factor", format!("{} is outside (0, 1]", t.factor));
        }
        let f = &self.finetune;
        for (key, v) in [
            ("finetune.foreground", f.foreground),
            ("finetune.validation_fraction", f.validation_fraction),
            ("finetune.test_fraction", f.test_fraction),
        ] {
            if !(0.0..=1.0).contains(&v) {
                return bad(key, format!("{v} is outside 0..=1"));
            }
        }
        if !(f.fraction > 0.0 && f.fraction <= 1.0) {
            return bad("finetune.fraction", format!("{} is outside (0, 1]", f.fraction));
        }
        if !(0.0..=5.0).contains(&f.intensity) {
            return bad("finetune.intensity", format!("{} is outside 0..=5", f.intensity));
        }
        if f.windows == 0 || f.windows > 4096 {
            return bad("finetune.windows", format!("{} is outside 1..=4096", f.windows));
        }
        if f.folds == 1 || (f.folds > 0 && f.fold >= f.folds) {
            return bad(
                "finetune.fold",
                format!("fold {} of {} does not exist; at least 2 folds are needed, numbered from 0", f.fold, f.folds),
            );
        }
        let p = &self.prepare;
        if !(p.validation_fraction > 0.0 && p.validation_fraction < 1.0) {
            return bad("prepare.validation_fraction", format!("{} is outside (0, 1)", p.validation_fraction));
        }
        if p.modality == Modality::Window && !(p.window[0] < p.window[1]) {
            return bad("prepare.window", format!("{:?} must be a lower and a higher intensity", p.window));
        }
        if let Some(s) = p.spacing.given()
            && s.iter().any(|v| !(0.05..=50.0).contains(v))
        {
            return bad("prepare.spacing", format!("{s:?} mm is outside 0.05..=50"));
        }
        if let Some(g) = p.grid.given()
            && g.iter().any(|&v| v == 0 || v > 4096)
        {
            return bad("prepare.grid", format!("{g:?} is outside 1..=4096"));
        }
        Ok(())
    }
}

/// Closeness of a mistyped key to a known one: the better of the whole dotted names and their last parts.
fn nearness(known: &str, typed: &str) -> f64 {
    let last = |s: &str| s.rsplit('.').next().unwrap_or(s).to_owned();
    strsim::jaro_winkler(known, typed).max(strsim::jaro_winkler(&last(known), &last(typed)) - 0.02)
}

/// Dotted keys and values of the leaves of a table.
fn leaves(table: &Table) -> Vec<(String, Value)> {
    let mut out = Vec::new();
    for (k, v) in table {
        match v {
            Value::Table(t) => out.extend(leaves(t).into_iter().map(|(sub, v)| (format!("{k}.{sub}"), v))),
            v => out.push((k.clone(), v.clone())),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(pairs: &[&str]) -> Result<Config> {
        Config::load(None, &pairs.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn written_configuration_reads_back() {
        let c =
            set(&["train.preset=models-genesis", "cube.size=[32,32,16]", "prepare.spacing=[1,1,2.5]", "loss.classification=1"]).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.toml");
        std::fs::write(&path, c.to_toml()).unwrap();
        assert_eq!(Config::load(Some(&path), &[]).unwrap(), c);
        assert_eq!(c.train.preset, Preset::ModelsGenesis);
        assert_eq!(c.prepare.spacing.given(), Some([1.0, 1.0, 2.5]));
    }

    #[test]
    fn syntax_errors_name_the_line() {
        let e = Config::default().overlay_toml("seed = 1\n[train]\nepochs = = 3\n").unwrap_err().to_string();
        assert!(e.starts_with("line 3 is not TOML") && !e.contains('\n'), "{e}");
    }

    #[test]
    fn unknown_keys_name_the_near_miss() {
        let e = set(&["train.batchsize=8"]).unwrap_err().to_string();
        assert!(e.contains("train.batchsize") && e.contains("`train.batch_size`"), "{e}");
        let e = set(&["batch_size=8"]).unwrap_err().to_string();
        assert!(e.contains("batch_size`?"), "{e}");
    }

    #[test]
    fn wrong_values_name_the_key() {
        for pair in [
            "train.batch_size=-1",
            "train.preset=nonsense",
            "cube.size=[30,64,32]",
            "train.learning_rate=0",
            "model.classes=many",
            "train.batch_size=0",
            "train.micro_batch=5",
            "train.micro_batch=0",
            "train.micro_batch=some",
            "train.memory=0",
            "train.recompute=perhaps",
            "discover.autoencoder.micro_batch=0",
        ] {
            let e = set(&[pair]).unwrap_err();
            assert!(e.to_string().contains(pair.split('=').next().unwrap()), "{e}");
            assert_eq!(e.exit_code(), 2);
        }
        assert!(set(&["train.batch_size"]).is_err());
    }
}
