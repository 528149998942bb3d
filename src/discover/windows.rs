//! Windows of the crops at resolutions 2 and 3: scaled and shifted around a class's coordinate.

use serde::{Deserialize, Serialize};

use crate::rng::Key;

/// Draws after which a window that does not fit is no longer drawn anew.
const REDRAWS: usize = 1000;

/// Ranges of the scaled windows, both ends included.
///
/// Published for a cube of 64: sides 50..=79, shifts -10..=9; these are scaled to the cube's size
/// along x and rounded (`round(50/64 L) ..= round(80/64 L) - 1`, `-round(10/64 L) ..= round(10/64 L) - 1`;
/// 175..=279 and -35..=34 for an image of 224). Where the cube is not square, the side along y
/// follows the one along x in proportion. The slice axis keeps its size and place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WindowRule {
    /// Least and largest side along x, in voxels.
    pub side: [usize; 2],
    /// Least and largest shift along x, in voxels.
    pub shift_x: [i64; 2],
    /// Least and largest shift along y, in voxels.
    pub shift_y: [i64; 2],
}

/// First voxel and size of a window.
pub type Window = ([usize; 3], [usize; 3]);

impl WindowRule {
    /// The ranges for a cube of size `cube`.
    pub fn new(cube: [usize; 3]) -> Self {
        let scaled = |of_64: usize, length: usize| (of_64 * length + 32) / 64;
        let shift = |length| {
            let most = scaled(10, length) as i64;
            [-most, (most - 1).max(0)]
        };
        let least = scaled(50, cube[0]);
        Self { side: [least, scaled(80, cube[0]).saturating_sub(1).max(least)], shift_x: shift(cube[0]), shift_y: shift(cube[1]) }
    }

    /// Draws a window around `start` that lies inside a volume of size `grid`: side and shifts are
    /// drawn together, anew until the window fits. Should it never fit in a thousand draws, the
    /// largest unshifted window that fits is taken. `None` only if there is none of those either,
    /// which cannot be when the cube itself fits at `start`.
    pub fn draw(&self, key: Key, cube: [usize; 3], start: [usize; 3], grid: [usize; 3]) -> Option<Window> {
        self.draw_at_most(REDRAWS, key, cube, start, grid)
    }

    fn draw_at_most(&self, draws: usize, key: Key, cube: [usize; 3], start: [usize; 3], grid: [usize; 3]) -> Option<Window> {
        let mut rng = key.rng();
        for _ in 0..draws {
            let side = rng.int(self.side[0] as i64, self.side[1] as i64) as usize;
            let shift = [rng.int(self.shift_x[0], self.shift_x[1]), rng.int(self.shift_y[0], self.shift_y[1])];
            let window = place(cube, side, start, shift, grid);
            if window.is_some() {
                return window;
            }
        }
        (self.side[0]..=self.side[1]).rev().find_map(|side| place(cube, side, start, [0, 0], grid))
    }
}

/// Size of the window of side `side` along x.
pub fn window_size(cube: [usize; 3], side: usize) -> [usize; 3] {
    [side, ((2 * side * cube[1] + cube[0]) / (2 * cube[0])).max(1), cube[2]]
}

/// The window, if it lies inside `grid`.
fn place(cube: [usize; 3], side: usize, start: [usize; 3], shift: [i64; 2], grid: [usize; 3]) -> Option<Window> {
    let size = window_size(cube, side);
    let moved = [start[0].checked_add_signed(shift[0] as isize)?, start[1].checked_add_signed(shift[1] as isize)?, start[2]];
    (0..3).all(|a| moved[a] + size[a] <= grid[a]).then_some((moved, size))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_published_ranges_at_the_published_sizes() {
        let r = WindowRule::new([64, 64, 32]);
        assert_eq!((r.side, r.shift_x, r.shift_y), ([50, 79], [-10, 9], [-10, 9]));
        let r = WindowRule::new([224, 224, 1]);
        assert_eq!((r.side, r.shift_x, r.shift_y), ([175, 279], [-35, 34], [-35, 34]));
        let r = WindowRule::new([32, 16, 16]);
        assert_eq!((r.side, r.shift_x, r.shift_y), ([25, 39], [-5, 4], [-3, 2]));
        assert_eq!(window_size([32, 16, 16], 39), [39, 20, 16]);
    }

    #[test]
    fn with_room_all_around_every_value_is_drawn_evenly() {
        let rule = WindowRule::new([64, 64, 32]);
        let mut sides = [0u32; 30];
        let mut shifts = [[0u32; 20]; 2];
        for i in 0..60_000 {
            let (start, size) = rule.draw(Key::new(3).fold(i, 0), [64, 64, 32], [100, 90, 40], [300, 300, 100]).unwrap();
            assert_eq!((start[2], size[1], size[2]), (40, size[0], 32));
            sides[size[0] - 50] += 1;
            shifts[0][start[0] - 90] += 1;
            shifts[1][start[1] - 80] += 1;
        }
        assert!(sides.iter().all(|n| (1800..2200).contains(n)), "{sides:?}");
        assert!(shifts.iter().flatten().all(|n| (2750..3250).contains(n)), "{shifts:?}");
    }

    #[test]
    fn a_window_that_never_fits_falls_back_to_the_largest_that_does() {
        let (cube, start) = ([64, 64, 32], [3, 0, 1]);
        let rule = WindowRule::new(cube);
        assert_eq!(rule.draw_at_most(0, Key::new(0), cube, start, [70, 68, 33]), Some((start, [67, 67, 32])));
        assert_eq!(rule.draw_at_most(0, Key::new(0), cube, start, [200, 200, 33]), Some((start, [79, 79, 32])));
        assert_eq!(rule.draw(Key::new(0), cube, start, [40, 200, 33]), None);
    }

    proptest! {
        #[test]
        fn windows_are_inside_and_in_range(
            cube in prop::array::uniform3(1usize..70),
            start in prop::array::uniform3(0usize..20),
            room in prop::array::uniform3(0usize..30),
            seed in any::<u64>(),
        ) {
            let grid = std::array::from_fn(|a| start[a] + cube[a] + room[a]);
            let rule = WindowRule::new(cube);
            prop_assert!(rule.side[0] >= 1 && rule.side[0] <= cube[0] && cube[0] <= rule.side[1].max(cube[0]));
            let (at, size) = rule.draw(Key::new(seed), cube, start, grid).unwrap();
            for a in 0..3 {
                prop_assert!(size[a] > 0 && at[a] + size[a] <= grid[a]);
            }
            prop_assert!((rule.side[0]..=rule.side[1]).contains(&size[0]));
            let shift = at[0] as i64 - start[0] as i64;
            prop_assert!((rule.shift_x[0]..=rule.shift_x[1]).contains(&shift));
            prop_assert_eq!((at[2], size[2]), (start[2], cube[2]));
        }
    }
}
