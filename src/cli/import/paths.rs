//! Checks every path of an import before anything is opened: what it writes must not be what it, or a muster
//! with these settings, reads or keeps.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{bail, ensure};

use super::Flags;
use crate::config::{Settings, StoreUrl};
use crate::import::is_report;

impl Flags {
    /// The file of the report; none for standard output.
    pub(super) fn report(&self) -> Option<&Path> {
        self.output.as_deref().filter(|path| path.as_os_str() != "-")
    }

    /// The file of the checkpoint, if there is one.
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

    /// An error names the flag whose file is another's.
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
                ensure!(!is_same(path, other), "{flag} {name}: that is {what}; name another");
            }
            ensure!(!path.is_dir(), "{flag} {name}: a folder; name a file");
        }
        if let (Some(report), Some(checkpoint)) = (self.report(), &checkpoint) {
            ensure!(
                !is_same(report, checkpoint),
                "--output {}: that is the checkpoint; name another",
                report.display()
            );
        }
        self.report().map_or(Ok(()), |report| self.check_report(report))
    }

    /// A report that is there is continued or replaced only if that is asked for, and nothing else ever is.
    fn check_report(&self, path: &Path) -> anyhow::Result<()> {
        let Ok(there) = fs::metadata(path) else { return Ok(()) };
        // A pipe or a device keeps nothing.
        if !there.is_file() || there.len() == 0 {
            return Ok(());
        }
        let name = path.display();
        if !is_report(path) {
            bail!("--output {name}: exists and is not a report of an import; name another file");
        }
        ensure!(
            self.resume || self.force,
            "--output {name}: a report is there already; --resume continues its import, --force replaces it, or \
             name another file"
        );
        Ok(())
    }
}

/// Whether two paths are one file, by whatever names, or would be.
fn is_same(one: &Path, other: &Path) -> bool {
    let file = |path: &Path| fs::metadata(path).map(|file| (file.dev(), file.ino())).ok();
    place(one) == place(other) || file(one).is_some_and(|one| file(other) == Some(one))
}

/// Where a file is, or would be made.
fn place(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = fs::canonicalize(folder.unwrap_or(Path::new(".")));
        match (folder, path.file_name()) {
            (Ok(folder), Some(name)) => folder.join(name),
            _ => path.to_owned(),
        }
    })
}
