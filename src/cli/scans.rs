//! The scans that a model is applied to, as the command line names them.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use super::text;
use crate::data::recipe::Recipe;
use crate::data::{image, scans};
use crate::error::{Error, Result};
use crate::task::predict::Opened;
use crate::task::table::Image;

/// A scan with all its channels.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Case {
    /// Unique name, also without regard to case.
    pub(super) name: String,
    /// One image a channel.
    pub(super) images: Vec<Image>,
}

impl Case {
    /// The file that the answer's geometry is that of.
    pub(super) fn path(&self) -> &Path {
        self.images[0].path()
    }

    /// Reads the scan, ready for windows to be taken from it.
    ///
    /// # Errors
    /// What is wrong with one of its files.
    pub(super) fn open(&self, recipe: &Recipe, json: bool) -> Result<Opened> {
        let volumes = self.images.iter().map(|i| i.volume().unwrap_or_else(|| Err(Error::input(i.path(), "is no scan"))));
        let opened = Opened::new(recipe, volumes).map_err(|(c, e)| match e {
            Error::Usage(what) => Error::input(self.images[c].path(), what),
            other => other,
        })?;
        opened.notes().for_each(|(c, note)| text::note(json, &format!("{}: {note}", self.images[c].path().display())));
        Ok(opened)
    }
}

/// The scans in files and folders for a model that takes `channels`.
///
/// With one channel every file is a scan. With several, a scan is one file with a volume for each channel, or one file for each,
/// named after the scan with the channel's name or its number (`_0000`, `_0001`, …) behind.
///
/// # Errors
/// Inputs without scans, channels that are missing, and two scans of one name.
pub(super) fn cases(inputs: &[PathBuf], channels: &[String], json: bool) -> Result<Vec<Case>> {
    let found = scans::find(inputs)?;
    for (path, why) in &found.left_out {
        text::note(json, &format!("{} is left out, it is a label map: {why}", path.display()));
    }
    let cases = if channels.len() == 1 {
        found.scans.iter().map(|p| Case { name: image::stem(p), images: vec![Image::Scan(p.clone())] }).collect()
    } else {
        grouped(&found.scans, channels)?
    };
    let mut seen: HashMap<String, &Case> = HashMap::new();
    for case in &cases {
        if let Some(other) = seen.insert(case.name.to_lowercase(), case) {
            return Err(Error::input(
                case.path(),
                format!("would have the same name `{}` as {}; predict them into different folders", case.name, other.path().display()),
            ));
        }
    }
    Ok(cases)
}

/// Files of several channels put together.
fn grouped(files: &[PathBuf], channels: &[String]) -> Result<Vec<Case>> {
    let n = channels.len();
    let mut out = Vec::new();
    let mut parts: BTreeMap<PathBuf, Vec<Option<&PathBuf>>> = BTreeMap::new();
    for file in files {
        // A file that cannot be read is told by its name; reading it says what is wrong.
        if image::read_series_header(file).is_ok_and(|h| h.volumes == n) {
            let images = (0..n).map(|index| Image::Volume { path: file.clone(), index }).collect();
            out.push(Case { name: image::stem(file), images });
            continue;
        }
        let stem = image::stem(file);
        let of = |c: usize| stem.strip_suffix(&format!("_{c:04}")).or_else(|| stem.strip_suffix(&format!("_{}", channels[c])));
        let Some((c, name)) = (0..n).find_map(|c| Some((c, of(c)?))) else {
            return Err(Error::input(
                file,
                format!(
                    "is no scan for this model, which takes {n} channels ({}): give files with {n} volumes, or one file a channel named NAME_{} or NAME_0000 and so on",
                    channels.join(", "),
                    channels[0]
                ),
            ));
        };
        let slot = &mut parts.entry(file.with_file_name(name)).or_insert_with(|| vec![None; n])[c];
        if let Some(other) = slot.replace(file) {
            return Err(Error::input(file, format!("and {} are both the channel {} of one scan", other.display(), channels[c])));
        }
    }
    for (name, files) in parts {
        if let Some(c) = files.iter().position(Option::is_none) {
            let there = files.iter().flatten().next().map_or(name.as_path(), |p| p.as_path());
            return Err(Error::input(there, format!("belongs to a scan whose channel {} ({}) is not there", c, channels[c])));
        }
        let images = files.into_iter().flatten().map(|p| Image::Scan(p.clone())).collect();
        out.push(Case { name: name.file_name().unwrap_or_default().to_string_lossy().into_owned(), images });
    }
    Ok(out)
}

/// What befell the cases of a call.
#[derive(Default)]
pub(super) struct Failures {
    keep_going: bool,
    list: Vec<(String, String)>,
    total: usize,
}

impl Failures {
    /// Nothing has failed yet.
    pub(super) fn new(keep_going: bool) -> Self {
        Self { keep_going, ..Self::default() }
    }

    /// The result of a case; one that failed because of its files is noted if the rest is to go on.
    ///
    /// # Errors
    /// Any other failure.
    pub(super) fn take<T>(&mut self, name: &str, result: Result<T>, json: bool) -> Result<Option<T>> {
        self.total += 1;
        match result {
            Ok(done) => Ok(Some(done)),
            Err(e) if self.keep_going && matches!(e, Error::Input { .. } | Error::Io { action: "read" | "open", .. }) => {
                text::note(json, &format!("{name} is left out: {e}"));
                self.list.push((name.to_owned(), e.to_string()));
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }

    /// For machines.
    pub(super) fn json(&self) -> serde_json::Value {
        self.list.iter().map(|(id, why)| serde_json::json!({ "id": id, "reason": why })).collect()
    }

    /// Fails if a case has.
    ///
    /// # Errors
    /// [`Error::Failed`].
    pub(super) fn end(&self) -> Result<()> {
        match self.list.first() {
            None => Ok(()),
            Some((_, why)) => {
                Err(Error::Failed(format!("{} of {} scans could not be used; the first: {why}", self.list.len(), self.total)))
            }
        }
    }
}

/// Creates a folder for results, which must be new or empty.
///
/// # Errors
/// A folder with something in it.
pub(super) fn new_folder(out: &Path) -> Result<()> {
    if std::fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(Error::input(out, "is not empty; choose another --out"));
    }
    crate::files::create_dir(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::nifti::write_f32;
    use crate::data::volume::{IDENTITY, Volume};

    #[test]
    fn channels_are_put_together_by_name_or_number() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str| {
            let data = (0..8u8).map(|v| f32::from(v) / 3.0).collect();
            write_f32(&dir.path().join(name), &Volume::new(data, [2; 3], IDENTITY).unwrap()).unwrap();
        };
        let channels = ["flair", "t1"].map(str::to_owned);
        let find = || cases(&[dir.path().to_path_buf()], &channels, true);
        for name in ["b_t1.nii", "b_flair.nii", "a_0001.nii", "a_0000.nii"] {
            write(name);
        }
        let found = find().unwrap();
        let files: Vec<(&str, Vec<String>)> =
            found.iter().map(|c| (c.name.as_str(), c.images.iter().map(|i| image::stem(i.path())).collect())).collect();
        assert_eq!(files, [("a", vec!["a_0000".into(), "a_0001".into()]), ("b", vec!["b_flair".to_owned(), "b_t1".into()])]);
        write("c_0001.nii");
        assert!(find().unwrap_err().to_string().contains("channel 0 (flair) is not there"));
        write("c_flair.nii");
        write("c_0000.nii");
        assert!(find().unwrap_err().to_string().contains("both the channel flair"));
        write("d.nii");
        std::fs::remove_file(dir.path().join("c_0000.nii")).unwrap();
        assert!(find().unwrap_err().to_string().contains("NAME_flair"));
    }

    #[test]
    fn names_that_meet_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        for folder in ["x", "y"] {
            std::fs::create_dir(dir.path().join(folder)).unwrap();
            let data = (0..8u8).map(|v| f32::from(v) / 3.0).collect();
            let name = if folder == "x" { "Scan.nii" } else { "scan.nii.gz" };
            write_f32(&dir.path().join(folder).join(name), &Volume::new(data, [2; 3], IDENTITY).unwrap()).unwrap();
        }
        let found = cases(&[dir.path().to_path_buf()], &["ct".to_owned()], true);
        assert!(found.unwrap_err().to_string().contains("same name"));
    }
}
