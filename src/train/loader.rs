//! Batches, cut ahead of the device that consumes them.
//!
//! A [`Loader`] has one thread that walks the batches in order and a pool of its own that reads the
//! cubes of a batch side by side. A few finished batches wait in a bounded channel, so memory stays
//! bounded however slow the consumer is. What comes out depends on the samples, the key and the
//! position alone, never on the number of threads.
//!
//! Every batch is full, because a plan is made for one shape. *Training* shuffles the samples anew
//! in every epoch and leaves out the rest that does not fill a batch; fewer samples than one batch
//! are repeated until it is full. *Validation* goes through all samples in order; its last batch is
//! filled up by repeating its own samples, and [`Batch::valid`] tells how many count.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use rand::seq::SliceRandom;
use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::rng::{Key, Purpose};

/// Finished batches that wait for the consumer, besides the one in the making.
const AHEAD: usize = 2;

/// One sample as the network takes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// `[x][y][z]`, channels innermost.
    pub cube: Vec<f32>,
    /// Class, classes of the voxels, or the bits of 32-bit floats, as the objective wants them.
    pub target: Vec<u32>,
}

/// Which look at a sample is taken: its number in the list of samples, and the epoch in training.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// Place among the samples.
    pub position: usize,
    /// Number of the crop.
    pub crop: u32,
    /// The epoch; `None` in validation, where every look is the same.
    pub epoch: Option<u32>,
}

/// What there is to load.
pub struct Samples {
    crops: Vec<u32>,
    cube_len: usize,
    target_len: usize,
    read: Box<dyn Fn(Look) -> Result<Sample> + Send + Sync>,
}

/// Cubes of one step.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// Epoch it belongs to; 0 in validation.
    pub epoch: u32,
    /// Its number in the epoch.
    pub index: u32,
    /// Numbers of the crops.
    pub samples: Vec<u32>,
    /// The cubes one after the other: `[n][x][y][z]`.
    pub cubes: Vec<f32>,
    /// Targets of the crops: `[n][target_len]`.
    pub targets: Vec<u32>,
    /// How many, from the first, count; the rest only fills the batch.
    pub valid: usize,
}

impl Samples {
    /// Samples from pairs of crop number and label; `read` gives the cube of a crop number, which
    /// must have `cube_len` values.
    ///
    /// # Errors
    /// If there are none, or `cube_len` is 0.
    pub fn new(
        items: impl IntoIterator<Item = (u32, u32)>,
        cube_len: usize,
        read: impl Fn(u32) -> Result<Vec<f32>> + Send + Sync + 'static,
    ) -> Result<Arc<Self>> {
        let (crops, labels): (Vec<u32>, Vec<u32>) = items.into_iter().unzip();
        Self::with_targets(crops, cube_len, 1, move |look| Ok(Sample { cube: read(look.crop)?, target: vec![labels[look.position]] }))
    }

    /// Samples of crop numbers; `read` gives the sample of a look, with `cube_len` values and `target_len` of its target.
    /// The same look always gives the same sample.
    ///
    /// # Errors
    /// If there are none, or a length is 0.
    pub fn with_targets(
        crops: Vec<u32>,
        cube_len: usize,
        target_len: usize,
        read: impl Fn(Look) -> Result<Sample> + Send + Sync + 'static,
    ) -> Result<Arc<Self>> {
        if crops.is_empty() || cube_len == 0 || target_len == 0 {
            return Err(Error::Usage(format!(
                "{} crops of {cube_len} voxels cannot be loaded; at least one of each is needed",
                crops.len()
            )));
        }
        Ok(Arc::new(Self { crops, cube_len, target_len, read: Box::new(read) }))
    }

    /// Number of samples.
    #[expect(clippy::len_without_is_empty, reason = "never empty")]
    pub fn len(&self) -> usize {
        self.crops.len()
    }

    /// Training batches of `batch` samples per epoch.
    ///
    /// # Panics
    /// If `batch` is 0.
    pub fn train_batches(&self, batch: usize) -> usize {
        (self.len() / batch).max(1)
    }

    /// Validation batches of `batch` samples.
    ///
    /// # Panics
    /// If `batch` is 0.
    pub fn validation_batches(&self, batch: usize) -> usize {
        self.len().div_ceil(batch)
    }

    /// The order of epoch `epoch`, as positions.
    fn order(&self, key: Key, epoch: u32) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.len()).collect();
        order.shuffle(&mut key.purpose(Purpose::Order, epoch).rng());
        order
    }

    /// The cubes and targets at `positions`, repeated until there are `batch`; `None` if `stop` came first.
    fn cubes(&self, positions: &[usize], epoch: Option<u32>, batch: usize, stop: &AtomicBool) -> Option<Result<(Vec<f32>, Vec<u32>)>> {
        let (len, target_len) = (self.cube_len, self.target_len);
        let (mut cubes, mut targets) = (vec![0f32; batch * len], vec![0u32; batch * target_len]);
        let read = |((cube, target), &position): ((&mut [f32], &mut [u32]), &usize)| -> Result<()> {
            if stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            let crop = self.crops[position];
            let sample = (self.read)(Look { position, crop, epoch })?;
            for (what, found, expected) in [("voxels", sample.cube.len(), len), ("target values", sample.target.len(), target_len)] {
                if found != expected {
                    return Err(Error::Failed(format!("the cube of crop {crop} has {found} {what} where {expected} are expected")));
                }
            }
            cube.copy_from_slice(&sample.cube);
            target.copy_from_slice(&sample.target);
            Ok(())
        };
        // All outcomes are collected, so that of several errors always the same one is reported.
        let places = cubes.par_chunks_mut(len).zip(targets.par_chunks_mut(target_len));
        let outcomes: Vec<Result<()>> = places.zip(positions).with_max_len(1).map(read).collect();
        if stop.load(Ordering::Relaxed) {
            return None;
        }
        if let Some(e) = outcomes.into_iter().find_map(Result::err) {
            return Some(Err(e));
        }
        let n = positions.len();
        for i in n..batch {
            cubes.copy_within((i % n) * len..(i % n + 1) * len, i * len);
            targets.copy_within((i % n) * target_len..(i % n + 1) * target_len, i * target_len);
        }
        Some(Ok((cubes, targets)))
    }
}

/// An iterator over batches; ends after an error. Dropping it stops its threads.
pub struct Loader {
    batches: Option<Receiver<Result<Batch>>>,
    worker: Option<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
}

/// What is walked through.
#[derive(Clone, Copy)]
enum Walk {
    /// Epoch after epoch without end.
    Train { key: Key, epoch: u32, index: u32 },
    /// Once.
    Validation,
}

impl Loader {
    /// Training batches of `batch` samples from batch `index` of epoch `epoch` on, without end.
    ///
    /// The order of epoch `e` is drawn from `key`, so a run that continues at a position gets what
    /// an uninterrupted one gets there. The position after an epoch's last batch is the next
    /// epoch's first.
    ///
    /// # Errors
    /// A batch of 0, a position beyond the epoch, threads that cannot be started.
    pub fn train(samples: Arc<Samples>, batch: usize, key: Key, epoch: u32, index: u32) -> Result<Self> {
        Self::start(samples, batch, Walk::Train { key, epoch, index }, threads())
    }

    /// All samples once, in order, in batches of `batch`.
    ///
    /// # Errors
    /// A batch of 0, threads that cannot be started.
    pub fn validation(samples: Arc<Samples>, batch: usize) -> Result<Self> {
        Self::start(samples, batch, Walk::Validation, threads())
    }

    fn start(samples: Arc<Samples>, batch: usize, walk: Walk, threads: usize) -> Result<Self> {
        if batch == 0 {
            return Err(Error::Usage("a batch of 0 samples cannot be loaded; set train.batch_size to 1 or more".into()));
        }
        if let Walk::Train { index, .. } = walk
            && index as usize > samples.train_batches(batch)
        {
            let per_epoch = samples.train_batches(batch);
            return Err(Error::Usage(format!(
                "batch {index} does not exist in an epoch of {per_epoch} batches of {batch}; the run was started with another train.batch_size or another manifest"
            )));
        }
        let failed = |e: &dyn std::fmt::Display| Error::Failed(format!("cannot start the threads that load cubes: {e}"));
        let pool =
            rayon::ThreadPoolBuilder::new().num_threads(threads).thread_name(|i| format!("cubes-{i}")).build().map_err(|e| failed(&e))?;
        let (sender, receiver) = sync_channel(AHEAD);
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stop);
        let worker = std::thread::Builder::new()
            .name("loader".into())
            .spawn(move || {
                let mut send = Sender { samples: &samples, batch, pool: &pool, stop: &seen, sender };
                // It ends by itself after the last batch, an error, or when nobody listens any more.
                let _ = send.walk(walk);
            })
            .map_err(|e| failed(&e))?;
        Ok(Self { batches: Some(receiver), worker: Some(worker), stop })
    }
}

/// One thread fewer than there are processors, which also feed the device.
fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get().saturating_sub(1).max(1))
}

/// The producing side.
struct Sender<'a> {
    samples: &'a Samples,
    batch: usize,
    pool: &'a rayon::ThreadPool,
    stop: &'a AtomicBool,
    sender: SyncSender<Result<Batch>>,
}

/// Nothing more is to be sent.
struct Ended;

impl Sender<'_> {
    fn walk(&mut self, walk: Walk) -> Result<(), Ended> {
        match walk {
            Walk::Train { key, mut epoch, index } => {
                let mut first = index as usize;
                loop {
                    let order = self.samples.order(key, epoch);
                    // With fewer samples than a batch this takes them all.
                    let chunks = order.chunks(self.batch).take(self.samples.train_batches(self.batch));
                    for (i, positions) in chunks.enumerate().skip(first) {
                        self.send(Some(epoch), i, positions, self.batch)?;
                    }
                    first = 0;
                    epoch = epoch.wrapping_add(1);
                }
            }
            Walk::Validation => {
                let order: Vec<usize> = (0..self.samples.len()).collect();
                for (i, positions) in order.chunks(self.batch).enumerate() {
                    self.send(None, i, positions, positions.len())?;
                }
                Ok(())
            }
        }
    }

    fn send(&mut self, epoch: Option<u32>, index: usize, positions: &[usize], valid: usize) -> Result<(), Ended> {
        let cubes = self.pool.install(|| self.samples.cubes(positions, epoch, self.batch, self.stop)).ok_or(Ended)?;
        let samples = positions.iter().cycle().take(self.batch).map(|&p| self.samples.crops[p]).collect();
        let epoch = epoch.unwrap_or(0);
        let batch = cubes.map(|(cubes, targets)| Batch { epoch, index: index as u32, samples, cubes, targets, valid });
        let failed = batch.is_err();
        self.sender.send(batch).map_err(|_| Ended)?;
        if failed { Err(Ended) } else { Ok(()) }
    }
}

impl Iterator for Loader {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Result<Batch>> {
        let received = self.batches.as_ref()?.recv();
        if !matches!(received, Ok(Ok(_))) {
            self.batches = None;
        }
        match received {
            Ok(batch) => Some(batch),
            // The thread has ended: after the last batch, or by a panic that must not pass for that.
            Err(_) => match self.worker.take()?.join() {
                Ok(()) => None,
                Err(panic) => Some(Err(Error::Failed(format!("loading cubes failed: {}", message(&*panic))))),
            },
        }
    }
}

/// The text of a panic.
fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("unknown panic")
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // A thread that waits for room in the channel wakes up when the other end is gone.
        self.batches = None;
        if let Some(worker) = self.worker.take() {
            // A panic in it has been reported by `next`, or nobody asked for its batch.
            let _ = worker.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::time::{Duration, Instant};

    use super::*;

    const LEN: usize = 6;

    fn cube(crop: u32) -> Vec<f32> {
        (0..LEN).map(|i| crop as f32 + i as f32 / 8.0).collect()
    }

    /// Crops 100, 101, … with label `crop % 7`.
    fn samples(n: u32) -> Arc<Samples> {
        Samples::new((100..100 + n).map(|c| (c, c % 7)), LEN, |c| Ok(cube(c))).unwrap()
    }

    fn key() -> Key {
        Key::new(9)
    }

    fn take(loader: Loader, n: usize) -> Vec<Batch> {
        loader.take(n).map(Result::unwrap).collect()
    }

    fn assert_consistent(b: &Batch) {
        assert_eq!(b.cubes, b.samples.iter().flat_map(|&c| cube(c)).collect::<Vec<_>>());
        assert_eq!(b.targets, b.samples.iter().map(|c| c % 7).collect::<Vec<_>>());
    }

    #[test]
    fn an_epoch_shows_samples_once_in_a_new_order() {
        let s = samples(23);
        assert_eq!(s.train_batches(5), 4);
        let batches = take(Loader::train(Arc::clone(&s), 5, key(), 0, 0).unwrap(), 12);
        let mut orders = Vec::new();
        for (e, epoch) in batches.chunks(4).enumerate() {
            let order: Vec<u32> = epoch.iter().flat_map(|b| b.samples.clone()).collect();
            let mut sorted = order.clone();
            sorted.sort_unstable();
            sorted.dedup();
            assert_eq!(sorted.len(), 20, "no sample twice");
            for (i, b) in epoch.iter().enumerate() {
                assert_eq!((b.epoch as usize, b.index as usize, b.valid, b.samples.len()), (e, i, 5, 5));
                assert_consistent(b);
            }
            orders.push(order);
        }
        assert!(orders[0] != orders[1] && orders[1] != orders[2]);
        let other = take(Loader::train(s, 5, Key::new(10), 0, 0).unwrap(), 4);
        assert_ne!(other[0].samples, batches[0].samples);
    }

    #[test]
    fn continuing_anywhere_equals_going_straight() {
        let s = samples(23);
        let straight = take(Loader::train(Arc::clone(&s), 5, key(), 0, 0).unwrap(), 14);
        for (epoch, index, at) in [(0, 0, 0), (0, 3, 3), (0, 4, 4), (1, 0, 4), (2, 2, 10)] {
            let resumed = take(Loader::train(Arc::clone(&s), 5, key(), epoch, index).unwrap(), 3);
            assert_eq!(resumed, straight[at..at + 3], "from epoch {epoch}, batch {index}");
        }
        let e = Loader::train(s, 5, key(), 0, 5).err().unwrap().to_string();
        assert!(e.contains("batch 5") && e.contains("4 batches of 5"), "{e}");
    }

    #[test]
    fn the_number_of_threads_does_not_matter() {
        let s = samples(40);
        let run = |threads| take(Loader::start(Arc::clone(&s), 8, Walk::Train { key: key(), epoch: 1, index: 2 }, threads).unwrap(), 9);
        assert_eq!(run(1), run(4));
    }

    #[test]
    fn few_samples_are_repeated_to_fill_a_batch() {
        let s = samples(3);
        assert_eq!(s.train_batches(8), 1);
        for b in take(Loader::train(s, 8, key(), 0, 0).unwrap(), 3) {
            assert_eq!((b.index, b.valid, b.samples.len()), (0, 8, 8));
            assert_eq!(b.samples[..3], b.samples[3..6]);
            assert_eq!(b.samples[..2], b.samples[6..]);
            assert_consistent(&b);
        }
    }

    #[test]
    fn validation_shows_every_sample_once_in_order() {
        for (n, batch, last) in [(23, 5, 3), (20, 5, 5), (3, 8, 3), (1, 1, 1)] {
            let s = samples(n);
            let count = s.validation_batches(batch);
            let batches: Vec<Batch> = Loader::validation(s, batch).unwrap().map(Result::unwrap).collect();
            assert_eq!(batches.len(), count);
            let seen: Vec<u32> = batches.iter().flat_map(|b| b.samples[..b.valid].to_vec()).collect();
            assert_eq!(seen, (100..100 + n).collect::<Vec<_>>());
            assert_eq!(batches[count - 1].valid, last);
            for b in &batches {
                assert_eq!(b.samples.len(), batch);
                assert_consistent(b);
            }
        }
    }

    #[test]
    fn an_error_comes_in_its_turn_and_ends_the_batches() {
        let read = |c| if c >= 12 { Err(Error::Failed(format!("crop {c} is gone"))) } else { Ok(vec![0.0; LEN]) };
        for _ in 0..20 {
            let s = Samples::new((0..20).map(|c| (c, 0)), LEN, read).unwrap();
            let mut loader = Loader::validation(s, 5).unwrap();
            assert!(loader.next().unwrap().is_ok() && loader.next().unwrap().is_ok());
            assert_eq!(loader.next().unwrap().unwrap_err().to_string(), "crop 12 is gone");
            assert!(loader.next().is_none());
        }
        let s = Samples::new([(4, 0)], LEN + 1, |c| Ok(cube(c))).unwrap();
        let e = Loader::validation(s, 1).unwrap().next().unwrap().unwrap_err().to_string();
        assert!(e.contains("crop 4 has 6 voxels where 7"), "{e}");
    }

    #[test]
    fn a_panic_is_an_error_and_not_the_end_of_the_data() {
        let s = Samples::new((0..4).map(|c| (c, 0)), LEN, |c| {
            assert!(c < 2, "broken volume");
            Ok(vec![0.0; LEN])
        });
        let mut loader = Loader::validation(s.unwrap(), 2).unwrap();
        assert!(loader.next().unwrap().is_ok());
        let e = loader.next().unwrap().unwrap_err().to_string();
        assert!(e.contains("broken volume"), "{e}");
        assert!(loader.next().is_none());
    }

    #[test]
    fn nothing_to_load_is_an_error() {
        assert!(Samples::new([], LEN, |_| Ok(Vec::new())).is_err());
        assert!(Samples::new([(0, 0)], 0, |_| Ok(Vec::new())).is_err());
        assert!(Loader::train(samples(3), 0, key(), 0, 0).is_err());
    }

    fn counting(n: u32, pause: Duration) -> (Arc<Samples>, Arc<AtomicUsize>) {
        let reads = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&reads);
        let s = Samples::new((0..n).map(|c| (c, 0)), LEN, move |c| {
            counter.fetch_add(1, Ordering::SeqCst);
            std::thread::sleep(pause);
            Ok(cube(c))
        });
        (s.unwrap(), reads)
    }

    fn wait_until(what: impl Fn() -> bool) {
        let start = Instant::now();
        while !what() {
            assert!(start.elapsed() < Duration::from_secs(20), "waited too long");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn batches_are_cut_ahead_but_not_without_bound() {
        let (s, reads) = counting(400, Duration::ZERO);
        let mut loader = Loader::train(s, 4, key(), 0, 0).unwrap();
        // Two wait in the channel and one for room in it, before anything was asked for.
        wait_until(|| reads.load(Ordering::SeqCst) == 12);
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(reads.load(Ordering::SeqCst), 12);
        loader.next().unwrap().unwrap();
        wait_until(|| reads.load(Ordering::SeqCst) == 16);
    }

    #[test]
    fn dropping_stops_at_once_in_every_state() {
        for wait in [0, 1, 30] {
            let (s, reads) = counting(10_000, Duration::from_millis(2));
            let loader = Loader::train(Arc::clone(&s), 5_000, key(), 0, 0).unwrap();
            std::thread::sleep(Duration::from_millis(wait));
            let start = Instant::now();
            drop(loader);
            assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
            let after = reads.load(Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(20));
            assert_eq!(reads.load(Ordering::SeqCst), after, "no thread goes on");
            assert_eq!(Arc::strong_count(&s), 1, "no thread holds the samples");
        }
        // Full channel, and from inside a one-thread pool that the loader does not share.
        let (s, reads) = counting(40, Duration::ZERO);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        pool.install(|| {
            let loader = Loader::train(s, 4, key(), 0, 0).unwrap();
            wait_until(|| reads.load(Ordering::SeqCst) == 12);
            drop(loader);
        });
    }
}
