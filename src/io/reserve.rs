//! The free space that is to stay free (`min_free_bytes`).

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How much is to stay free, and where.
#[derive(Debug, Clone)]
pub struct Reserve {
    bytes: u64,
    warehouse: (PathBuf, Arc<OwnedFd>),
    /// Manifests and state.
    others: Vec<(PathBuf, Arc<OwnedFd>)>,
}

impl Reserve {
    /// Keeps `bytes` free on the filesystems of these directories.
    pub fn new(
        bytes: u64,
        warehouse: (PathBuf, Arc<OwnedFd>),
        others: Vec<(PathBuf, Arc<OwnedFd>)>,
    ) -> Reserve {
        Reserve {
            bytes,
            warehouse,
            others,
        }
    }

    /// The first of the directories with too little free space, and what there is to say of it.
    pub fn shortage(&self) -> Option<(&Path, String)> {
        if self.bytes == 0 {
            return None;
        }
        let places = [&self.warehouse].into_iter().chain(&self.others);
        for (path, dir) in places {
            // A filesystem that does not say is found out by writing to it.
            if let Ok(free) = free_bytes(dir)
                && free < self.bytes
            {
                let reason = format!(
                    "{} has {free} bytes free, min_free_bytes keeps {}",
                    path.display(),
                    self.bytes
                );
                return Some((path, reason));
            }
        }
        None
    }

    /// Why a copy that takes so many bytes must not be begun, if it must not: it would not fit, or take what is to stay free.
    pub fn refuses_copy(&self, bytes: u64) -> Option<String> {
        let (path, dir) = &self.warehouse;
        let needed = self.bytes.saturating_add(bytes);
        let short = free_bytes(dir).is_ok_and(|free| free < needed);
        // Without numbers that change from file to file: a reason that is not new is not told again.
        short.then(|| {
            let path = path.display();
            match self.bytes {
                0 => format!("{path} has no room for the next copy"),
                kept => {
                    format!("{path} has no room for the next copy, min_free_bytes keeps {kept}")
                }
            }
        })
    }
}

/// What an ordinary user can still write there.
fn free_bytes(dir: impl AsFd) -> io::Result<u64> {
    let seen = rustix::fs::fstatvfs(dir)?;
    Ok(seen.f_bavail.saturating_mul(seen.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shortage_names_the_place_what_is_free_and_what_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let open = crate::io::open::root_dir(dir.path()).unwrap();
        let place = (dir.path().to_path_buf(), Arc::new(open));
        let reserve = |bytes| Reserve::new(bytes, place.clone(), vec![place.clone()]);
        assert_eq!(reserve(0).shortage(), None);
        assert!(reserve(0).refuses_copy(u64::MAX).is_some());
        assert_eq!(reserve(0).refuses_copy(1), None);
        assert_eq!(reserve(1).shortage(), None);
        assert_eq!(reserve(1).refuses_copy(1), None);
        assert!(reserve(1).refuses_copy(u64::MAX).is_some());
        let all = reserve(u64::MAX);
        let (path, reason) = all.shortage().unwrap();
        assert_eq!(path, dir.path());
        for part in [
            "bytes free",
            &u64::MAX.to_string(),
            dir.path().to_str().unwrap(),
        ] {
            assert!(reason.contains(part), "{reason}");
        }
    }
}
