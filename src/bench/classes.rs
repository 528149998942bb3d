//! Operations over rows of class scores, as [`Problem`]s.

use super::op::{Content, Operand, Outputs, Problem, judge};
use super::pick::few;
use crate::gpu::{Dtype, Recorder, View};
use crate::kernels::classes;
use crate::kernels::loss::class_dice::{self, Geom};
use crate::rng::{Key, Purpose};

/// Rows that are compared.
const ROWS: usize = 4096;

fn labels(rows: usize, classes: usize) -> Vec<u32> {
    let mut rng = Key::new(0xC1).purpose(Purpose::Check, 1).rng();
    (0..rows).map(|_| u32::try_from(rng.int(0, classes as i64 - 1)).unwrap_or(0)).collect()
}

fn words(labels: &[u32]) -> Operand {
    Operand::input("labels", labels.len(), Dtype::F32, Content::Words(labels.into()))
}

/// The elements of some rows.
fn picked(rows: usize, classes: usize) -> (Vec<usize>, Vec<usize>) {
    let some = few(rows, ROWS);
    let all = some.iter().flat_map(|r| r * classes..(r + 1) * classes).collect();
    (some, all)
}

/// Softmax of rows, or its gradient.
pub fn softmax(rows: usize, classes: usize, grad: bool) -> Problem {
    let n = rows * classes;
    let (shape, flops) = (format!("{rows},{classes}"), 4 * n as u64);
    let (_, at) = picked(rows, classes);
    let x = Operand::input(
        if grad { "y" } else { "x" },
        n,
        Dtype::F32,
        if grad { Content::between(1, n, 0.0, 1.0) } else { Content::random(1, n, 4.0) },
    );
    if grad {
        let operands = vec![x, Operand::input("d_y", n, Dtype::F32, Content::random(2, n, 1.0)), Operand::output("d_x", n, Dtype::F32)];
        let check = move |o: &[Operand], out: &Outputs| {
            let want = classes::reference_softmax_backward(classes, &o[0].content.gather(&at), &o[1].content.gather(&at));
            judge("d_x", &out.gather(2, &at), &want, 1e-5)
        };
        let record = move |rec: &mut Recorder<'_>, _: &str, v: &[View]| classes::softmax_backward(rec, rows, classes, v[0], v[1], v[2]);
        return Problem::new("softmax", "grad", shape, operands, flops, record, check);
    }
    let check = move |o: &[Operand], out: &Outputs| {
        let want = classes::reference_softmax(classes, &o[0].content.gather(&at));
        judge("y", &out.gather(1, &at), &want, 1e-5)
    };
    let record = move |rec: &mut Recorder<'_>, _: &str, v: &[View]| classes::softmax(rec, rows, classes, v[0], v[1]);
    Problem::new("softmax", "forward", shape, vec![x, Operand::output("y", n, Dtype::F32)], flops, record, check)
}

/// The largest of each row.
pub fn arg_max(rows: usize, classes: usize) -> Problem {
    let n = rows * classes;
    let (some, at) = picked(rows, classes);
    let operands = vec![Operand::input("x", n, Dtype::F32, Content::random(1, n, 4.0)), Operand::output("place", rows, Dtype::F32)];
    let check = move |o: &[Operand], out: &Outputs| {
        let want: Vec<f64> = classes::reference_arg_max(classes, &o[0].content.gather(&at)).into_iter().map(f64::from).collect();
        let found: Vec<f32> = out.gather(1, &some).iter().map(|v| v.to_bits() as f32).collect();
        judge("place", &found, &want, 0.0)
    };
    let record = move |rec: &mut Recorder<'_>, _: &str, v: &[View]| classes::arg_max(rec, rows, classes, v[0], v[1]);
    Problem::new("arg_max", "forward", format!("{rows},{classes}"), operands, n as u64, record, check)
}

/// Numbers weighted by the class of their row.
pub fn weigh(rows: usize, classes: usize) -> Problem {
    let l = labels(rows, classes);
    let (some, _) = picked(rows, classes);
    let operands = vec![
        Operand::input("x", rows, Dtype::F32, Content::random(1, rows, 1.0)),
        words(&l),
        Operand::input("weights", classes, Dtype::F32, Content::between(2, classes, 0.5, 2.0)),
        Operand::output("y", rows, Dtype::F32),
    ];
    let check = move |o: &[Operand], out: &Outputs| {
        let chosen: Vec<u32> = some.iter().map(|&r| l[r]).collect();
        let weights: Vec<f64> = (0..classes).map(|c| o[2].content.at(c)).collect();
        judge("y", &out.gather(3, &some), &classes::reference_weigh(&o[0].content.gather(&some), &chosen, &weights), 1e-6)
    };
    let record = move |rec: &mut Recorder<'_>, _: &str, v: &[View]| classes::weigh(rec, rows, classes, v[0], v[1], v[2], v[3]);
    Problem::new("weigh", "forward", format!("{rows},{classes}"), operands, rows as u64, record, check)
}

/// Soft Dice of every class but the first, or its gradient.
pub fn dice(rows: usize, classes: usize, grad: bool) -> Problem {
    let (n, l) = (rows * classes, labels(rows, classes));
    let g = Geom { rows, classes, first: usize::from(classes > 1) };
    let (shape, flops) = (format!("{rows},{classes}"), 4 * n as u64);
    let p = Operand::input("probability", n, Dtype::F32, Content::between(1, n, 0.0, 1.0));
    let labelled = words(&l);
    let whole = |o: &[Operand], n: usize| o[0].content.gather(&(0..n).collect::<Vec<_>>());
    if grad {
        let (some, at) = picked(rows, classes);
        let operands = vec![
            p,
            labelled,
            Operand::input("d_loss", 1, Dtype::F32, Content::between(3, 1, 0.5, 1.5)),
            Operand::output("d_probability", n, Dtype::F32),
        ];
        let check = move |o: &[Operand], out: &Outputs| {
            let all = class_dice::reference_class_dice_backward(classes, g.first, &whole(o, n), &l, o[2].content.at(0));
            let want: Vec<f64> = some.iter().flat_map(|r| all[r * classes..(r + 1) * classes].to_vec()).collect();
            judge("d_probability", &out.gather(3, &at), &want, 1e-4)
        };
        let record = move |rec: &mut Recorder<'_>, _: &str, v: &[View]| class_dice::class_dice_backward(rec, &g, v[0], v[1], v[2], v[3]);
        return Problem::new("class_dice", "grad", shape, operands, flops, record, check);
    }
    let check = move |o: &[Operand], out: &Outputs| {
        let want = class_dice::reference_class_dice(classes, g.first, &whole(o, n), &l);
        judge("loss", &out.numbers(2), &[want], 1e-4)
    };
    let record = move |rec: &mut Recorder<'_>, _: &str, v: &[View]| class_dice::class_dice(rec, &g, v[0], v[1], v[2]);
    Problem::new("class_dice", "forward", shape, vec![p, labelled, Operand::output("loss", 1, Dtype::F32)], flops, record, check)
}
