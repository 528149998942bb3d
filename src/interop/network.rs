//! Which network a set of named tensors belongs to, from its names and shapes alone.

use std::collections::BTreeMap;

use super::tensors::Tensor;
use crate::config::{Activation, Variant};

/// Most channels, classes and levels of a network; what is larger is a lie.
const MOST: usize = 1 << 16;
const MOST_LEVELS: usize = 8;

/// A network of this family.
#[derive(Clone, Debug, PartialEq)]
pub struct Network {
    /// Published variant.
    pub variant: Variant,
    /// PReLU if there are slopes. ReLU and ELU have no tensors; ReLU is assumed.
    pub activation: Activation,
    /// Channels of the first convolution.
    pub base: usize,
    /// Levels, the deepest included.
    pub depth: usize,
    /// Channels of the input.
    pub channels: usize,
    /// Channels of the full-size output, if there is a decoder.
    pub restored: Option<usize>,
    /// Whether the decoder reads the encoder's blocks.
    pub skips: bool,
    /// Pseudo classes, if there is a class head of pretraining.
    pub classes: Option<usize>,
    /// Outputs of the linear layer of a fine-tuned classifier, if there is one.
    pub answers: Option<usize>,
}

impl Network {
    /// The network that has these tensors. Tensors that are missing or have other shapes than the rest tells are not noticed.
    ///
    /// # Errors
    /// What is missing or impossible, as a phrase about the file.
    pub fn of(tensors: &BTreeMap<String, Tensor>) -> Result<Self, String> {
        let size = |name: &str, axis: usize| -> Result<Option<usize>, String> {
            let Some(t) = tensors.get(name) else { return Ok(None) };
            match t.shape.get(axis) {
                Some(&n) if (1..=MOST).contains(&n) => Ok(Some(n)),
                _ => Err(format!("has the tensor `{name}` with the shape {:?}, which no network of this family has", t.shape)),
            }
        };
        let keras = tensors.contains_key("depth_0.conv.weight");
        let variant = if keras { Variant::Keras } else { Variant::PyTorch };
        let first = if keras { "depth_0.conv.weight" } else { "down_tr64.ops.0.conv1.weight" };
        let base = size(first, 0)?
            .ok_or("has neither `down_tr64.ops.0.conv1.weight` nor `depth_0.conv.weight`, with one of which every encoder begins")?;
        let channels = size(first, 1)?.unwrap_or(1);
        let mut depth = 0;
        while depth < MOST_LEVELS {
            let second = match variant {
                Variant::PyTorch => format!("down_tr{}.ops.1.conv1.weight", 64usize << depth),
                Variant::Keras => format!("depth_{}.conv.weight", 2 * depth + 1),
            };
            if size(&second, 0)? != Some(base << (depth + 1)) {
                break;
            }
            depth += 1;
        }
        if depth == 0 {
            return Err("has no whole level of an encoder".into());
        }
        let (output, head) = match variant {
            Variant::PyTorch => ("out_tr.final_conv.weight", "clc_out.fc1.weight"),
            Variant::Keras => ("final_conv.weight", "cls_output.weight"),
        };
        let skips = match variant {
            Variant::PyTorch => true,
            // (refined, skip) are 3 · 2^(depth - 1) · base channels wide together, the refined alone 2 · 2^(depth - 1) · base.
            Variant::Keras => size(&format!("depth_{}.conv.weight", 2 * depth), 1)? != Some(base << depth),
        };
        let prelu = tensors.keys().any(|k| k.ends_with(".activation.weight"));
        Ok(Self {
            variant,
            activation: if prelu { Activation::PRelu } else { Activation::Relu },
            base,
            depth,
            channels,
            restored: size(output, 0)?,
            skips,
            classes: size(head, 0)?,
            answers: size("classifier.weight", 0)?,
        })
    }

    /// Name of the decoder's output layer.
    pub fn output_layer(&self) -> &'static str {
        match self.variant {
            Variant::PyTorch => "out_tr.final_conv",
            Variant::Keras => "final_conv",
        }
    }

    /// What it is called.
    pub fn word(&self) -> &'static str {
        match (self.restored, self.classes, self.answers) {
            (Some(_), Some(_), _) => "Y-Net",
            (Some(_), None, _) if self.skips => "U-Net",
            (Some(_), None, _) => "autoencoder",
            (None, Some(_), _) => "encoder and class head",
            (None, None, Some(_)) => "encoder and classifier",
            (None, None, None) => "encoder",
        }
    }
}

impl std::fmt::Display for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}, {} variant, base width {}, {} levels", self.word(), self.variant.word(), self.base, self.depth)?;
        let plural = |n: usize, what: &str| if n == 1 { format!(", 1 {what}") } else { format!(", {n} {what}s") };
        if self.channels != 1 {
            f.write_str(&plural(self.channels, "input channel"))?;
        }
        if let Some(n) = self.restored.filter(|&n| n != 1) {
            f.write_str(&plural(n, "output channel"))?;
        }
        match (self.classes, self.answers) {
            (Some(n), _) => write!(f, ", {n} pseudo classes"),
            (None, Some(n)) => f.write_str(&plural(n, "output")),
            (None, None) => Ok(()),
        }
    }
}

/// Whether a tensor of that name can belong to a network of this family.
pub fn known(name: &str) -> bool {
    let module = name.split('.').next().unwrap_or_default();
    let number =
        |prefix: &str| module.strip_prefix(prefix).is_some_and(|n| !n.is_empty() && n.len() <= 5 && n.bytes().all(|b| b.is_ascii_digit()));
    let alone = ["out_tr", "clc_out", "classifier", "final_conv", "cls_fc", "cls_output"];
    let leaf = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"];
    (number("down_tr") || number("up_tr") || number("depth_") || alone.contains(&module))
        && name.rsplit('.').next().is_some_and(|l| leaf.contains(&l))
        && name.len() > module.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensors(list: &[(&str, &[usize])]) -> BTreeMap<String, Tensor> {
        list.iter().map(|(n, s)| ((*n).to_owned(), Tensor::f32(s.to_vec(), vec![0.0; s.iter().product()]))).collect()
    }

    #[test]
    fn networks_are_told_by_names_and_shapes() {
        let mut t = tensors(&[
            ("down_tr64.ops.0.conv1.weight", &[2, 1, 1, 1, 1]),
            ("down_tr64.ops.1.conv1.weight", &[4, 2, 1, 1, 1]),
            ("down_tr128.ops.1.conv1.weight", &[8, 4, 1, 1, 1]),
        ]);
        let n = Network::of(&t).unwrap();
        assert_eq!((n.base, n.depth, n.channels, n.word()), (2, 2, 1, "encoder"));
        t.extend(tensors(&[("out_tr.final_conv.weight", &[1, 4, 1, 1, 1])]));
        assert_eq!(Network::of(&t).unwrap().to_string(), "U-Net, pytorch variant, base width 2, 2 levels");
        t.extend(tensors(&[("clc_out.fc1.weight", &[5, 16])]));
        assert_eq!(Network::of(&t).unwrap().to_string(), "Y-Net, pytorch variant, base width 2, 2 levels, 5 pseudo classes");
        t.remove("out_tr.final_conv.weight");
        assert_eq!(Network::of(&t).unwrap().word(), "encoder and class head");
        t.remove("clc_out.fc1.weight");
        t.extend(tensors(&[("classifier.weight", &[1, 8]), ("down_tr64.ops.0.activation.weight", &[2])]));
        let n = Network::of(&t).unwrap();
        assert_eq!((n.word(), n.answers, n.activation), ("encoder and classifier", Some(1), Activation::PRelu));
        let keras = |wide: usize| {
            let mut t = tensors(&[("depth_0.conv.weight", &[2, 3, 1, 1, 1]), ("depth_1.conv.weight", &[4, 2, 1, 1, 1])]);
            t.extend(tensors(&[("depth_2.conv.weight", &[4, 4, 1, 1, 1]), ("depth_3.conv.weight", &[8, 4, 1, 1, 1])]));
            t.extend(tensors(&[("depth_4.conv.weight", &[4, wide, 1, 1, 1]), ("depth_5.conv.weight", &[4, 4, 1, 1, 1])]));
            t.extend(tensors(&[("final_conv.weight", &[1, 4, 1, 1, 1])]));
            t
        };
        let n = Network::of(&keras(8)).unwrap();
        assert_eq!((n.variant, n.depth, n.channels, n.skips, n.word()), (Variant::Keras, 2, 3, false, "autoencoder"));
        assert!(Network::of(&keras(12)).unwrap().skips);
    }

    #[test]
    fn shapes_that_cannot_be_are_refused() {
        for shape in [&[] as &[usize], &[0, 1, 1, 1, 1]] {
            assert!(Network::of(&tensors(&[("down_tr64.ops.0.conv1.weight", shape)])).unwrap_err().contains("which no network"));
        }
        assert!(Network::of(&tensors(&[("down_tr64.ops.0.conv1.weight", &[2, 1, 3])])).unwrap_err().contains("no whole level"));
        assert!(Network::of(&BTreeMap::new()).unwrap_err().contains("neither"));
    }

    #[test]
    fn names_of_the_family_are_known_and_others_are_not() {
        for name in [
            "down_tr64.ops.0.conv1.weight",
            "up_tr256.up_conv.bias",
            "clc_out.bn1.num_batches_tracked",
            "depth_13.bn.running_var",
            "classifier.bias",
        ] {
            assert!(known(name), "{name}");
        }
        for name in [
            "module.down_tr64.ops.0.conv1.weight",
            "classficationNet.clc_out.fc1.bias",
            "down_tr.x.weight",
            "conv1.weight",
            "weight",
            "out_tr",
            "classifier",
        ] {
            assert!(!known(name), "{name}");
        }
    }
}
