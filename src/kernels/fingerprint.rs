//! Whether kernels are still those that were measured.

use super::conv3d::{self, Geom, Input, Output, Pass, Problem};
use crate::files::sha256_hex;
use crate::gpu::{BufferId, Caps, Dtype, Recorder, View};

/// Hash of the texts and launches of every kernel whose variant is chosen by measurement, as they are made for an
/// adapter on a few shapes: it changes with the shader files and with what generates text from them.
pub fn fingerprint(caps: &Caps) -> String {
    let shapes = [
        ([8, 8, 8], 32, 64, [3; 3], [1; 3], [1; 3]),
        ([8, 8, 16], 96, 32, [3; 3], [1; 3], [1; 3]),
        ([8, 8, 8], 1, 32, [3; 3], [1; 3], [1; 3]),
        ([8, 8, 8], 64, 64, [2; 3], [2; 3], [0; 3]),
        ([8, 8, 8], 64, 1, [1; 3], [1; 3], [0; 3]),
    ];
    let mut all = String::new();
    for (input, ci, co, kernel, stride, padding) in shapes {
        let Ok(g) = Geom::new(1, input, ci, co, kernel, stride, padding) else { continue };
        for dtype in [Dtype::F32, Dtype::F16] {
            if dtype == Dtype::F16 && !caps.f16 {
                continue;
            }
            let x = View::typed(BufferId(0), input.iter().product::<usize>() * ci, dtype);
            let y = View::typed(BufferId(1), g.output().iter().product::<usize>() * co, dtype);
            let w = View::whole(BufferId(2), g.weight_len());
            for pass in Pass::ALL {
                let problem = Problem { pass, geom: g, source: g.whole(), input: dtype, output: dtype };
                for variant in problem.candidates(caps) {
                    let mut rec = Recorder::new(caps);
                    let recorded = match pass {
                        Pass::Forward => {
                            conv3d::forward_with(&mut rec, variant, &g, Input::plain(g.whole(), x), w, &Output::plain(y), false)
                        }
                        Pass::InputGrad => conv3d::backward_input_with(&mut rec, variant, &g, g.whole(), y, w, None, x),
                        Pass::WeightGrad => conv3d::backward_weight_with(&mut rec, variant, &g, Input::plain(g.whole(), x), y, w),
                    };
                    all += &format!("{} {} {}\n", problem.key(), variant.name(), recorded.is_ok());
                    for d in &rec.dispatches {
                        all += &format!("{} {:?}\n{}\n", d.groups, d.params, d.source);
                    }
                }
            }
        }
    }
    sha256_hex(all.as_bytes())[..16].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fingerprint_is_the_adapters_own_and_stays() {
        let caps = Caps::minimal();
        let halves = Caps { f16: true, ..caps.clone() };
        assert_eq!(fingerprint(&caps), fingerprint(&caps));
        assert_ne!(fingerprint(&caps), fingerprint(&halves));
    }
}
