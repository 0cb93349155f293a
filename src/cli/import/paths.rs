//! Checks the paths of an import before a file is opened: an output file must not be an input or a data file.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{bail, ensure};

use super::ImportArgs;
use crate::config::{Settings, StoreUrl};
use crate::import::is_report;

impl ImportArgs {
    /// Returns the file of the report. `None` for standard output.
    pub(super) fn report(&self) -> Option<&Path> {
        self.output.as_deref().filter(|path| path.as_os_str() != "-")
    }

    /// Returns the path of the checkpoint, if the import has one.
    pub(super) fn checkpoint_path(&self) -> Option<PathBuf> {
        if self.dry_run {
            return None;
        }
        if self.checkpoint.is_some() || self.file.as_os_str() == "-" {
            return self.checkpoint.clone();
        }
        let mut name = self.file.clone().into_os_string();
        name.push(".checkpoint");
        Some(name.into())
    }

    /// Returns an error with the flag whose file is already used for something else.
    pub(super) fn check_paths(&self, settings: &Settings) -> anyhow::Result<()> {
        let mut others = Vec::new();
        if self.file.as_os_str() != "-" {
            others.push((self.file.clone(), "the file to import"));
        }
        if let StoreUrl::File(store) = &settings.store.url {
            let mut secret = store.clone().into_os_string();
            secret.push(".secret");
            others.push((store.clone(), "the data file (store.url)"));
            others.push((secret.into(), "the signing secret of the data file"));
        }
        others.extend(
            self.settings.config.clone().map(|file| (file, "the settings file (--config)")),
        );
        let checkpoint = self.checkpoint_path();
        let written = [(self.report(), "--output"), (checkpoint.as_deref(), "--checkpoint")];
        for (path, flag) in written.into_iter().filter_map(|(path, flag)| Some((path?, flag))) {
            let name = path.display();
            for (other, what) in &others {
                ensure!(!is_same(path, other), "{flag} {name}: that is {what}; give another file");
            }
            ensure!(!path.is_dir(), "{flag} {name}: expected a file, got a directory");
        }
        if let (Some(report), Some(checkpoint)) = (self.report(), &checkpoint) {
            ensure!(
                !is_same(report, checkpoint),
                "--output {}: that is the checkpoint; give another file",
                report.display()
            );
        }
        self.report().map_or(Ok(()), |report| self.check_report(report))
    }

    /// Checks an existing file of --output. It must be a report, and is continued or replaced only on request.
    fn check_report(&self, path: &Path) -> anyhow::Result<()> {
        let Ok(metadata) = fs::metadata(path) else { return Ok(()) };
        // A pipe or a device has no content to overwrite.
        if !metadata.is_file() || metadata.len() == 0 {
            return Ok(());
        }
        let name = path.display();
        if !is_report(path) {
            bail!("--output {name}: exists and is not a report of an import; give another file");
        }
        ensure!(
            self.resume || self.force,
            "--output {name}: a report exists; resume its import with --resume, overwrite it with --force, or give \
             another file"
        );
        Ok(())
    }
}

/// Returns whether two paths name the same file, or would if it existed.
fn is_same(one: &Path, other: &Path) -> bool {
    let file = |path: &Path| fs::metadata(path).map(|file| (file.dev(), file.ino())).ok();
    resolved(one) == resolved(other) || file(one).is_some_and(|one| file(other) == Some(one))
}

/// Returns the absolute path of a file that may not exist yet.
fn resolved(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| {
        let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty());
        let directory = fs::canonicalize(directory.unwrap_or(Path::new(".")));
        match (directory, path.file_name()) {
            (Ok(directory), Some(name)) => directory.join(name),
            _ => path.to_owned(),
        }
    })
}
