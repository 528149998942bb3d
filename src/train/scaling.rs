//! The dynamic loss scale of mixed precision.
//!
//! Gradients of activations are stored in 16 bits, where what is below 6e-8 vanishes and what is above 65504 becomes
//! infinite. So the loss is multiplied by a scale before it is differentiated and the parameters' gradients, which have
//! 32 bits, are divided by it. The scale is found by trying: it is doubled after many good steps in a row and halved,
//! with the step left out, whenever a gradient is not finite. The numbers are those of PyTorch's `GradScaler`.

use serde::{Deserialize, Serialize};

/// First scale.
const START: f32 = 65_536.0;
/// Good steps in a row after which the scale is doubled.
const GROWTH_INTERVAL: u32 = 2000;
/// Largest scale; gradients that are all zero would let it grow until its inverse is no normal number.
const MOST: f32 = 1.329_228e36;

/// Where the loss scale of a phase stands; saved in checkpoints.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scaling {
    /// Current scale, a power of two.
    pub scale: f32,
    /// Good steps in a row since the scale changed.
    good: u32,
    /// Steps left out.
    pub skipped: u64,
}

impl Default for Scaling {
    fn default() -> Self {
        Self { scale: START, good: 0, skipped: 0 }
    }
}

impl Scaling {
    /// Takes note of a step whose gradients are finite.
    pub fn good(&mut self) {
        self.good += 1;
        if self.good >= GROWTH_INTERVAL {
            self.good = 0;
            self.scale = (self.scale * 2.0).min(MOST);
        }
    }

    /// Takes note of a step that is left out because a gradient is not finite. Returns whether a smaller scale can
    /// help: below 1 the gradients themselves are too large.
    pub fn overflow(&mut self) -> bool {
        self.good = 0;
        self.skipped += 1;
        self.scale *= 0.5;
        self.scale >= 1.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scale_doubles_after_many_good_steps_in_a_row_and_halves_at_once() {
        let mut s = Scaling::default();
        (0..1999).for_each(|_| s.good());
        assert_eq!((s.scale, s.skipped), (65_536.0, 0));
        s.good();
        assert_eq!(s.scale, 131_072.0);
        (0..1999).for_each(|_| s.good());
        assert!(s.overflow());
        assert_eq!((s.scale, s.skipped), (65_536.0, 1));
        // The count starts anew.
        (0..1999).for_each(|_| s.good());
        assert_eq!(s.scale, 65_536.0);
        s.good();
        assert_eq!(s.scale, 131_072.0);
    }

    #[test]
    fn below_one_it_gives_up_and_above_it_stays_finite() {
        let mut s = Scaling::default();
        assert!((0..16).all(|_| s.overflow()));
        assert_eq!(s.scale, 1.0);
        assert!(!s.overflow());
        let mut s = Scaling { scale: 2f32.powi(118), ..Scaling::default() };
        (0..10_000).for_each(|_| s.good());
        assert_eq!(s.scale, 2f32.powi(120));
    }
}
