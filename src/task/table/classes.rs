//! Classes of a segmentation: names, the values that label maps have for them, and values that are merged.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::path::Path;

use rayon::prelude::*;

use super::{Choice, Class, Image, Table, Truth, near_miss, output};
use crate::data::image;
use crate::error::{Error, Result};

/// Most different values of the label maps of one set, and the largest.
const MAX_VALUES: usize = 255;

/// Classes of a segmentation, the background first: what [`Table`] says about them.
#[derive(Clone, Debug, PartialEq)]
pub struct Classes {
    /// Names.
    pub names: Vec<String>,
    /// The value of each in label maps.
    pub values: Vec<u32>,
    /// Which values of label maps count as each, where that is not `values`. Empty otherwise.
    pub merged: Vec<Vec<u32>>,
}

impl Classes {
    /// Those that `choice` names with the label values that count as them, if it names any.
    ///
    /// # Errors
    /// A sentence about classes without values or with the same ones.
    pub fn chosen(choice: &Choice) -> Result<Option<Self>, String> {
        choice.classes.as_deref().map(|chosen| resolve(Some(chosen), &[])).transpose()
    }

    /// The value of the class that `value` counts as; 0 if no class claims it.
    pub fn value_of(&self, value: u32) -> u32 {
        class_of(&self.values, &self.merged, value as f32).map_or(0, |c| self.values[c])
    }
}

/// The class that a value of a label map stands for, where `values` and `merged` are those of [`Classes`].
pub fn class_of(values: &[u32], merged: &[Vec<u32>], value: f32) -> Option<usize> {
    let is = |&v: &u32| v as f32 == value;
    if merged.is_empty() { values.iter().position(is) } else { merged.iter().position(|m| m.iter().any(is)) }
}

/// Classes from those that a recipe names, or from those that the data name (without the background).
///
/// Every label value of the data belongs to one class; what no class claims is background.
///
/// # Errors
/// A sentence about names without values, about classes that share values, and about values that are no labels.
pub(super) fn resolve(chosen: Option<&[Class]>, named: &[Class]) -> Result<Classes, String> {
    let of_data = |name: &str| named.iter().find(|c| c.name.eq_ignore_ascii_case(name));
    let known: BTreeSet<u32> = named.iter().flat_map(|c| c.values.iter().copied()).collect();
    let mut classes = Vec::new();
    for class in chosen.unwrap_or(named) {
        let mut class = class.clone();
        if class.values.is_empty() {
            let found = of_data(&class.name).ok_or_else(|| {
                let names: Vec<&str> = named.iter().map(|c| c.name.as_str()).collect();
                format!("has no label `{}`, only {}{}", class.name, names.join(", "), near_miss(&class.name, names.iter().copied()))
            })?;
            class.values.clone_from(&found.values);
        }
        if let Some(v) = class.values.iter().find(|v| !known.is_empty() && !known.contains(v)) {
            return Err(format!("has no label of the value {v}, which class `{}` asks for; its labels are {known:?}", class.name));
        }
        classes.push(class);
    }
    if classes.is_empty() {
        return Err("has no class besides the background; there is nothing to learn".into());
    }
    let mut owner: BTreeMap<u32, &str> = BTreeMap::new();
    for class in &classes {
        for &v in &class.values {
            if v == 0 || v as usize > MAX_VALUES {
                return Err(format!("gives class `{}` the label value {v}; values from 1 to {MAX_VALUES} were expected", class.name));
            }
            if let Some(other) = owner.insert(v, &class.name) {
                return Err(format!(
                    "has regions that overlap: label {v} counts as `{other}` and as `{}`; name classes that do not, for example classes = [{{ name = \"{}\" }}] under [data] of a recipe",
                    class.name, class.name
                ));
            }
        }
    }
    let mut seen = BTreeSet::from(["background".to_owned()]);
    if let Some(twice) = classes.iter().find(|c| !seen.insert(c.name.to_lowercase())) {
        return Err(format!("has two classes called `{}`", twice.name));
    }
    let rest: Vec<u32> = std::iter::once(0).chain(known.into_iter().filter(|v| !owner.contains_key(v))).collect();
    let plain = rest == [0] && classes.iter().all(|c| c.values.len() == 1);
    let values = std::iter::once(0).chain(classes.iter().map(|c| c.values[0])).collect();
    let merged = if plain { Vec::new() } else { std::iter::once(rest).chain(classes.iter().map(|c| c.values.clone())).collect() };
    let names = std::iter::once("background".to_owned()).chain(classes.into_iter().map(|c| c.name)).collect();
    Ok(Classes { names, values, merged })
}

/// Fills in the classes of a table whose label values are known from its masks alone.
///
/// # Errors
/// Masks that are no label maps or all empty, and as [`resolve`].
pub(super) fn from_masks(path: &Path, table: &mut Table, choice: &Choice) -> Result<()> {
    let masks: BTreeSet<&Path> = (table.cases.iter())
        .filter_map(|c| match &c.truth {
            Truth::Mask(mask) => Some(mask.path()),
            Truth::Labels(_) => None,
        })
        .collect();
    let masks: Vec<&Path> = masks.into_iter().collect();
    let found: Vec<Result<BTreeSet<u32>>> = masks.par_iter().map(|m| values(m)).collect();
    let mut all = BTreeSet::new();
    for one in found {
        all.extend(one?);
    }
    all.remove(&0);
    if all.is_empty() {
        return Err(Error::input(path, "has masks without any label besides 0; there is nothing to learn"));
    }
    let single = all.len() == 1;
    let name = |v: u32| if single { "foreground".to_owned() } else { format!("label {v}") };
    let named: Vec<Class> = all.into_iter().map(|v| Class { name: name(v), values: vec![v] }).collect();
    let classes = resolve(choice.classes.as_deref(), &named).map_err(|what| Error::input(path, what))?;
    table.output = output(classes.names.len());
    (table.classes, table.values, table.merged) = (classes.names, classes.values, classes.merged);
    Ok(())
}

/// The different values of a label map.
fn values(path: &Path) -> Result<BTreeSet<u32>> {
    let mut found = BTreeSet::new();
    let mut wrong = None;
    let mut last = 0.0f32;
    image::stream(path, &mut |piece| {
        for &v in piece {
            if v == last {
                continue;
            }
            last = v;
            if v.fract() == 0.0 && (0.0..=MAX_VALUES as f32).contains(&v) {
                found.insert(v as u32);
            } else {
                wrong = Some(v);
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    })?;
    match wrong {
        Some(v) => {
            Err(Error::input(path, format!("holds the value {v}; a label map of whole numbers from 0 to {MAX_VALUES} was expected")))
        }
        None => Ok(found),
    }
}

/// The images of `all` channels, by name, that a recipe asks for, and their names.
///
/// # Errors
/// A sentence about a channel that is not there.
pub(super) fn chosen_channels(wanted: Option<&[String]>, all: &[String]) -> Result<Vec<usize>, String> {
    let Some(wanted) = wanted else { return Ok((0..all.len()).collect()) };
    let place = |w: &String| {
        let found = all.iter().position(|c| c.eq_ignore_ascii_case(w));
        found.ok_or_else(|| format!("has no channel `{w}`, only {}{}", all.join(", "), near_miss(w, all.iter().map(String::as_str))))
    };
    if wanted.is_empty() {
        return Err("is asked for no channel at all".into());
    }
    wanted.iter().map(place).collect()
}

/// The images at `used` of those of all channels.
pub(super) fn pick(images: Vec<Image>, used: &[usize]) -> std::sync::Arc<[Image]> {
    used.iter().filter_map(|&i| images.get(i).cloned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(name: &str, values: &[u32]) -> Class {
        Class { name: name.into(), values: values.to_vec() }
    }

    #[test]
    fn values_are_merged_and_the_rest_is_background() {
        let data = [class("necrosis", &[1]), class("oedema", &[2]), class("enhancing", &[4])];
        let plain = resolve(None, &data).unwrap();
        assert_eq!((plain.values.as_slice(), plain.merged.as_slice()), (&[0, 1, 2, 4][..], &[][..]));
        assert_eq!(plain.names, ["background", "necrosis", "oedema", "enhancing"]);
        let whole = resolve(Some(&[class("tumour", &[1, 2, 4])]), &data).unwrap();
        assert_eq!((&whole.values, &whole.merged), (&vec![0, 1], &vec![vec![0], vec![1, 2, 4]]));
        assert_eq!([0, 1, 2, 3, 4].map(|v| whole.value_of(v)), [0, 1, 1, 0, 1]);
        assert_eq!([0, 1, 2, 3, 4].map(|v| plain.value_of(v)), [0, 1, 2, 0, 4]);
        let one = resolve(Some(&[class("Oedema", &[])]), &data).unwrap();
        assert_eq!((one.values, one.merged), (vec![0, 2], vec![vec![0, 1, 4], vec![2]]));
    }

    #[test]
    fn what_cannot_be_is_said() {
        let data = [class("a", &[1, 2]), class("b", &[2])];
        let refused = |chosen: Option<&[Class]>, data: &[Class]| resolve(chosen, data).unwrap_err();
        assert!(refused(None, &data).contains("overlap: label 2 counts as `a` and as `b`"));
        assert!(resolve(Some(&data[..1]), &data).is_ok());
        assert!(refused(Some(&[class("liver", &[])]), &[class("livr", &[1])]).contains("did you mean `livr`?"));
        assert!(refused(Some(&[class("a", &[9])]), &data).contains("value 9"));
        assert!(refused(None, &[]).contains("nothing to learn"));
        assert!(refused(None, &[class("a", &[0])]).contains("value 0"));
        assert!(refused(None, &[class("a", &[1]), class("A", &[2])]).contains("two classes"));
        assert!(refused(None, &[class("a", &[70_000])]).contains("70000"));
    }

    #[test]
    fn channels_are_picked_by_name() {
        let all = ["T1", "FLAIR"].map(str::to_owned);
        assert_eq!(chosen_channels(None, &all), Ok(vec![0, 1]));
        assert_eq!(chosen_channels(Some(&["flair".to_owned()]), &all), Ok(vec![1]));
        assert!(chosen_channels(Some(&["flar".to_owned()]), &all).unwrap_err().contains("did you mean `FLAIR`?"));
    }
}
