//! Counter-based random numbers: a value is a keyed hash of *where* it is used.
//!
//! Threefry-2x32 with 20 rounds (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy
//! as 1, 2, 3", SC 2011). There is no state to save: a [`Key`] is made from the run's seed and
//! folded with the epoch, the sample and the purpose; draw `i` of a key is the same 64 bits on
//! the host and, through `shaders/common/rng.wgsl`, on every adapter.

use std::convert::Infallible;

/// A stream of random numbers, named by seed and folds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key(pub [u32; 2]);

/// What a stream is used for; keeps streams of one sample apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Purpose {
    /// Initial weights of a network.
    Init = 1,
    /// The order of samples in an epoch.
    Order = 2,
    /// Reference patients and coordinates of self-discovery.
    Discover = 3,
    /// Windows of the crops at resolutions 2 and 3.
    Crop = 4,
    /// Parameters of the image transformations.
    Transform = 5,
    /// Noise evaluated per voxel on the device.
    Noise = 6,
    /// The split of scans into train and validation.
    Split = 7,
    /// Synthetic patients.
    Phantom = 8,
    /// Self-checks and tests.
    Check = 9,
    /// Resamples of measured values.
    Bootstrap = 10,
}

/// The Threefry-2x32 block function with 20 rounds.
pub fn threefry2x32(key: [u32; 2], counter: [u32; 2]) -> [u32; 2] {
    const ROTATIONS: [[u32; 4]; 2] = [[13, 15, 26, 6], [17, 29, 16, 24]];
    let ks = [key[0], key[1], 0x1BD1_1BDA ^ key[0] ^ key[1]];
    let mut x = [counter[0].wrapping_add(ks[0]), counter[1].wrapping_add(ks[1])];
    for group in 0..5u32 {
        for r in ROTATIONS[(group % 2) as usize] {
            x[0] = x[0].wrapping_add(x[1]);
            x[1] = x[1].rotate_left(r) ^ x[0];
        }
        let g = group as usize;
        x[0] = x[0].wrapping_add(ks[(g + 1) % 3]);
        x[1] = x[1].wrapping_add(ks[(g + 2) % 3]).wrapping_add(group + 1);
    }
    x
}

/// The 24 high bits of `bits` as a number in `[0, 1)`; the same formula as in WGSL.
pub fn unit_f32(bits: u32) -> f32 {
    (bits >> 8) as f32 * (1.0 / 16_777_216.0)
}

impl Key {
    /// The root stream of a run.
    pub fn new(seed: u64) -> Self {
        #[expect(clippy::cast_possible_truncation, reason = "splitting a u64 into its halves")]
        Self([seed as u32, (seed >> 32) as u32])
    }

    /// A sub-stream; different `(a, b)` give independent streams.
    #[must_use]
    pub fn fold(self, a: u32, b: u32) -> Self {
        Self(threefry2x32(self.0, [a, b]))
    }

    /// The sub-stream for one purpose and one index (an epoch, a patient, a tensor).
    #[must_use]
    pub fn purpose(self, purpose: Purpose, index: u32) -> Self {
        self.fold(purpose as u32 | 0x5EED_0000, index)
    }

    /// The two words of draw `index`.
    pub fn draw(self, index: u32) -> [u32; 2] {
        threefry2x32(self.0, [index, 0])
    }

    /// A generator that walks this stream's draws, for `rand`'s distributions and shuffles.
    pub fn rng(self) -> CounterRng {
        CounterRng { key: self, next: 0, spare: None }
    }
}

/// Sequential view of a [`Key`]; implements `rand`'s traits.
#[derive(Clone, Debug)]
pub struct CounterRng {
    key: Key,
    next: u32,
    spare: Option<u32>,
}

impl CounterRng {
    /// A uniform number in `[0, 1)` with 24 bits.
    pub fn unit(&mut self) -> f32 {
        unit_f32(self.word())
    }

    /// A uniform integer in `lo..=hi`, without bias (Lemire's multiply-and-reject).
    ///
    /// # Panics
    /// If `lo > hi`.
    pub fn int(&mut self, lo: i64, hi: i64) -> i64 {
        assert!(lo <= hi, "empty range {lo}..={hi}");
        let span = (hi - lo) as u64 + 1;
        assert!(span <= u64::from(u32::MAX), "range {lo}..={hi} is wider than 32 bits");
        let span = span as u32;
        let threshold = span.wrapping_neg() % span;
        loop {
            let m = u64::from(self.word()) * u64::from(span);
            #[expect(clippy::cast_possible_truncation, reason = "the low half decides rejection")]
            if m as u32 >= threshold {
                return lo + (m >> 32) as i64;
            }
        }
    }

    /// A standard normal number (Box–Muller, f64 inside).
    pub fn normal(&mut self) -> f64 {
        let u = (f64::from(self.word()) + 1.0) / 4_294_967_297.0;
        let v = f64::from(self.word()) / 4_294_967_296.0;
        (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
    }

    fn word(&mut self) -> u32 {
        if let Some(w) = self.spare.take() {
            return w;
        }
        let [a, b] = self.key.draw(self.next);
        self.next = self.next.wrapping_add(1);
        self.spare = Some(b);
        a
    }
}

impl rand::TryRng for CounterRng {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(self.word())
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        let lo = u64::from(self.word());
        Ok(lo | u64::from(self.word()) << 32)
    }

    fn try_fill_bytes(&mut self, dst: &mut [u8]) -> Result<(), Infallible> {
        for chunk in dst.chunks_mut(4) {
            chunk.copy_from_slice(&self.word().to_le_bytes()[..chunk.len()]);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known-answer vectors published with Random123 (`kat_vectors`, threefry2x32, 20 rounds).
    #[test]
    fn threefry_gives_the_published_vectors() {
        assert_eq!(threefry2x32([0, 0], [0, 0]), [0x6b20_0159, 0x99ba_4efe]);
        assert_eq!(threefry2x32([u32::MAX; 2], [u32::MAX; 2]), [0x1cb9_96fc, 0xbb00_2be7]);
        assert_eq!(threefry2x32([0x1319_8a2e, 0x0370_7344], [0x243f_6a88, 0x85a3_08d3]), [0xc492_3a9c, 0x483d_f7a0]);
    }

    #[test]
    fn integers_cover_their_range_evenly() {
        let mut rng = Key::new(7).rng();
        let mut count = [0u32; 7];
        for _ in 0..70_000 {
            count[usize::try_from(rng.int(-3, 3) + 3).unwrap()] += 1;
        }
        for n in count {
            assert!((9_500..10_500).contains(&n), "{count:?}");
        }
    }

    #[test]
    fn rand_distributions_draw_from_it() {
        use rand::seq::SliceRandom;
        let mut a: Vec<u32> = (0..50).collect();
        let mut b = a.clone();
        a.shuffle(&mut Key::new(1).rng());
        b.shuffle(&mut Key::new(1).rng());
        assert_eq!(a, b);
        b.shuffle(&mut Key::new(2).rng());
        assert_ne!(a, b);
    }
}
