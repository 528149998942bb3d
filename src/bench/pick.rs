//! Which elements of a large tensor are compared.

use std::collections::BTreeSet;

use crate::rng::{Key, Purpose};

/// Flat indices, ascending, of at most about `most` elements of a tensor of shape `shape` (last axis innermost): all of
/// them where there are no more; else corners, then elements on edges and faces and anywhere, in equal parts.
pub fn elements(shape: &[usize], most: usize) -> Vec<usize> {
    let total: usize = shape.iter().product();
    if total <= most {
        return (0..total).collect();
    }
    let flat = |at: &[usize]| at.iter().zip(shape).fold(0, |flat, (&i, &n)| flat * n + i);
    let mut out = BTreeSet::new();
    let corners = 1usize << shape.len().min(16);
    // Where there are more corners than may be picked, opposite ones come first.
    for k in 0..corners.min(most / 2) {
        let bits = if k % 2 == 0 { k / 2 } else { corners - 1 - k / 2 };
        let at: Vec<usize> = shape.iter().enumerate().map(|(a, &n)| if bits >> a & 1 == 1 { n - 1 } else { 0 }).collect();
        out.insert(flat(&at));
    }
    let mut rng = Key::new(0xBE7C).purpose(Purpose::Check, 1).rng();
    let mut below = |n: usize| usize::try_from(rng.int(0, n as i64 - 1)).unwrap_or(0);
    for i in 0..4 * most {
        if out.len() >= most {
            break;
        }
        let mut at: Vec<usize> = shape.iter().map(|&n| below(n)).collect();
        if i % 2 == 0 {
            let axis = below(shape.len());
            at[axis] = if i % 4 == 0 { 0 } else { shape[axis] - 1 };
        }
        out.insert(flat(&at));
    }
    out.into_iter().collect()
}

/// A few of `n`: the first, the last, and some between, ascending.
pub fn few(n: usize, most: usize) -> Vec<usize> {
    if n <= most {
        return (0..n).collect();
    }
    let set: BTreeSet<usize> = (0..most).map(|i| i * (n - 1) / (most - 1).max(1)).collect();
    set.into_iter().collect()
}

/// Position of flat index `flat` in `shape`.
pub fn unflatten<const N: usize>(mut flat: usize, shape: [usize; N]) -> [usize; N] {
    let mut at = [0; N];
    for a in (0..N).rev() {
        at[a] = flat % shape[a];
        flat /= shape[a];
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_tensors_are_compared_whole_and_large_ones_at_their_corners_and_edges() {
        assert_eq!(elements(&[2, 3], 6), [0, 1, 2, 3, 4, 5]);
        let shape = [2, 30, 40, 50, 16];
        let picked = elements(&shape, 300);
        assert!(picked.len() == 300 && picked.is_sorted());
        let total: usize = shape.iter().product();
        assert!(picked.contains(&0) && picked.contains(&(total - 1)));
        let at: Vec<[usize; 5]> = picked.iter().map(|&i| unflatten(i, shape)).collect();
        assert!(at.iter().any(|p| p[1] > 0 && p[1] < 29 && p[2] > 0 && p[2] < 39 && p[3] > 0 && p[3] < 49), "inside");
        assert!(at.iter().filter(|p| p[1] == 29).count() > 20 && at.iter().filter(|p| p[3] == 0).count() > 20);
        assert_eq!(elements(&shape, 300), picked);
        assert!(elements(&shape, 4).len() <= 4);
    }

    #[test]
    fn few_holds_both_ends() {
        assert_eq!(few(3, 5), [0, 1, 2]);
        assert_eq!(few(100, 4), [0, 33, 66, 99]);
        assert_eq!(few(9, 1), [0]);
        assert_eq!(unflatten(23, [2, 3, 4]), [1, 2, 3]);
    }
}
