//! Who may do what with a placed file: owner, group, permissions, and the attributes that grant rights. One rule, whether the file
//! itself is renamed or a copy of it is placed.
//!
//! | | `placed_owner = "keep"` | `placed_owner = "self"` |
//! |---|---|---|
//! | owner | its own | ringest's user |
//! | group | `placed_group`, else its own | the same |
//! | permissions | `placed_mode`, else its own | `placed_mode`, else its own, without those of group and others to write |
//! | setuid, setgid, sticky, `security.capability` | none | none |
//! | POSIX ACL | its own; none with `placed_mode` | none |
//!
//! A file that is renamed gets all of that before it is read. Whether it still has it is looked at once more when it is placed:
//! until then its owner may change it, and a rename hides that in the ctime.

use std::ffi::CStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::sync::LazyLock;

use rustix::fs::{Gid, Mode, Uid, XattrFlags};
use rustix::io::Errno;
use rustix::process::geteuid;

use crate::io::{FileStat, probe, stat};
use crate::settings::{Layout, PlacedOwner};

const ACL: &CStr = c"system.posix_acl_access";
const CAPABILITY: &CStr = c"security.capability";

/// Whether a file without a name can be given one when it is another's (fs.protected_hardlinks).
static LINKS_WHAT_IS_ANOTHERS: LazyLock<bool> = LazyLock::new(probe::owner_of_all);

/// Bytes of attribute names that are taken without allocating; most files have none.
const NAMES_BYTES: usize = 1024;
/// Most bytes that the kernel hands out of names, and of a value (XATTR_LIST_MAX, XATTR_SIZE_MAX).
const ATTRIBUTE_BYTES_MAX: usize = 64 << 10;

/// The permissions that a file with these is placed with.
fn mode_of(layout: &Layout, mode: u32) -> u32 {
    match (layout.placed_mode, layout.placed_owner) {
        (Some(mode), _) => mode,
        (None, PlacedOwner::Keep) => mode & 0o777,
        // A file that only its group or others could read is to be readable for its new owner.
        (None, PlacedOwner::Own) => mode & 0o755 | 0o400,
    }
}

/// Whether plain permissions and the ACL stay the business of the file's owner.
fn is_left_to_owner(layout: &Layout) -> bool {
    layout.placed_mode.is_none() && layout.placed_owner == PlacedOwner::Keep
}

/// Gives a file that is to be renamed what `layout` says. Returns whether anything was changed.
///
/// # Errors
/// PermissionDenied: it is not ours to change. Some of it may be changed by then.
pub fn set(file: impl AsFd, seen: &FileStat, layout: &Layout) -> io::Result<bool> {
    let own = (layout.placed_owner == PlacedOwner::Own).then(geteuid);
    let owner = own.filter(|owner| owner.as_raw() != seen.uid);
    let group = layout.placed_group.filter(|group| *group != seen.gid);
    let given = owner.is_some() || group.is_some();
    if given {
        rustix::fs::fchown(&file, owner, group.map(Gid::from_raw))?;
    }
    // From here on, who owned it cannot change what is looked at.
    let granted = Granted::by_attributes_of(&file);
    let acl = granted.acl && !is_left_to_owner(layout);
    if acl {
        remove(&file, ACL)?;
    }
    if granted.capability {
        remove(&file, CAPABILITY)?;
    }
    let mode = mode_of(layout, seen.mode);
    let other = mode != seen.mode || owner.is_some() || acl;
    if other {
        rustix::fs::fchmod(&file, Mode::from_raw_mode(mode))?;
    }
    Ok(given || granted.capability || other)
}

/// Whether a file has what [`set`] gave it.
pub fn is_set(seen: &FileStat, layout: &Layout) -> bool {
    let own = layout.placed_owner == PlacedOwner::Keep || seen.uid == geteuid().as_raw();
    own && seen.mode == mode_of(layout, seen.mode)
}

/// Whether a placed file has the rights that it had when it was `set`, as far as they are not its owner's to change.
pub fn is_still_set(placed: &FileStat, set: &FileStat, layout: &Layout) -> bool {
    let free = match is_left_to_owner(layout) {
        true => 0o777,
        false => 0,
    };
    let own = layout.placed_owner == PlacedOwner::Keep || placed.uid == set.uid;
    own && (placed.mode ^ set.mode) & !free == 0
}

/// Gives a copy the attributes and the permissions of its source, as far as `layout` says no other ones.
///
/// # Errors
/// Of fchmod, and of removing an ACL.
pub fn set_on_copy(
    copy: impl AsFd,
    source_fd: impl AsFd,
    source: &FileStat,
    layout: &Layout,
) -> io::Result<()> {
    // One that the warehouse gives to every new file.
    if Granted::by_attributes_of(&copy).acl {
        remove(&copy, ACL)?;
    }
    let with_acl = copy_attributes(source_fd, &copy, is_left_to_owner(layout));
    let mut mode = mode_of(layout, source.mode);
    if !with_acl {
        // The bits of the group are those of the ACL's mask, which may be more than the group had.
        mode &= 0o707;
    }
    Ok(rustix::fs::fchmod(&copy, Mode::from_raw_mode(mode))?)
}

/// Gives a copy to whom `layout` says. Comes last: from then on it may be another's.
///
/// # Errors
/// `placed_group` cannot be set.
pub fn give_away(copy: impl AsFd, source: &FileStat, layout: &Layout) -> io::Result<()> {
    let own = stat::stat_fd(&copy)?;
    let owner = match layout.placed_owner {
        PlacedOwner::Keep => source.uid,
        PlacedOwner::Own => own.uid,
    };
    let group = layout.placed_group.unwrap_or(source.gid);
    if (owner, group) == (own.uid, own.gid) {
        return Ok(());
    }
    let (owner, group) = (Uid::from_raw(owner), Gid::from_raw(group));
    // Only CAP_CHOWN gives files away; a copy of our own is still a good copy.
    let given = owner.as_raw() != own.uid
        && *LINKS_WHAT_IS_ANOTHERS
        && rustix::fs::fchown(&copy, Some(owner), Some(group)).is_ok();
    if given {
        return Ok(());
    }
    match rustix::fs::fchown(&copy, None, Some(group)) {
        Err(error) if layout.placed_group.is_some() => Err(error.into()),
        _ => Ok(()),
    }
}

/// What attributes may grant beyond permissions.
#[derive(Debug, Clone, Copy)]
struct Granted {
    acl: bool,
    capability: bool,
}

impl Granted {
    fn by_attributes_of(file: impl AsFd) -> Granted {
        let has = |names: &[u8], name: &CStr| {
            let mut names = names.split(|&byte| byte == 0);
            names.any(|one| one == name.to_bytes())
        };
        let mut space = [MaybeUninit::uninit(); NAMES_BYTES];
        match rustix::fs::flistxattr(file, &mut space[..]) {
            Ok((names, _)) => Granted {
                acl: has(names, ACL),
                capability: has(names, CAPABILITY),
            },
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => Granted {
                acl: false,
                capability: false,
            },
            // More names than are taken here or than the kernel tells: they may be among them.
            Err(_) => Granted {
                acl: true,
                capability: true,
            },
        }
    }
}

/// Removes an attribute, if it is there.
fn remove(file: impl AsFd, name: &CStr) -> io::Result<()> {
    match rustix::fs::fremovexattr(file, name) {
        Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Copies extended attributes as far as the destination takes them. False: there is an ACL, and it does not.
fn copy_attributes(from: impl AsFd, to: impl AsFd, with_acl: bool) -> bool {
    // Nothing is to be allocated where there are none.
    let mut names = match rustix::fs::flistxattr_query(&from) {
        Ok(0) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => return true,
        Ok(length) => vec![0; length.min(ATTRIBUTE_BYTES_MAX)],
        Err(_) => Vec::new(),
    };
    let length = match names.is_empty() {
        true => Err(Errno::TOOBIG),
        false => rustix::fs::flistxattr(&from, &mut names[..]),
    };
    match length {
        Ok(length) => names.truncate(length),
        // They cannot be told, but this one is known by its name.
        Err(_) => names = ACL.to_bytes().to_vec(),
    }
    let mut value = vec![0; ATTRIBUTE_BYTES_MAX];
    let mut all = true;
    for name in names.split(|&byte| byte == 0) {
        // Labels and capabilities are the destination's own business; other systems' ACLs go by `system`, too.
        let passed_over = name.is_empty()
            || name.starts_with(b"security.")
            || name.starts_with(b"system.") && !with_acl;
        if passed_over {
            continue;
        }
        let copied = rustix::fs::fgetxattr(&from, name, &mut value[..]).and_then(|length| {
            rustix::fs::fsetxattr(&to, name, &value[..length], XattrFlags::empty())
        });
        match copied {
            Err(Errno::NODATA) | Ok(()) => {}
            Err(_) => all &= name != ACL.to_bytes(),
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_placed_file_grants_no_more_than_it_was_given() {
        let seen = |mode, uid| {
            let mut seen = stat::stat_fd(tempfile::tempfile().unwrap()).unwrap();
            (seen.mode, seen.uid) = (mode, uid);
            seen
        };
        let ours = geteuid().as_raw();
        let layout = |placed_mode, placed_owner| Layout {
            placed_mode,
            placed_owner,
            ..Layout::default()
        };
        let keep = layout(None, PlacedOwner::Keep);
        let fixed = layout(Some(0o640), PlacedOwner::Keep);
        let own = layout(None, PlacedOwner::Own);
        let own_fixed = layout(Some(0o660), PlacedOwner::Own);
        for (layout, mode, given) in [
            (&keep, 0o7666, 0o666),
            (&fixed, 0o7666, 0o640),
            (&own, 0o7666, 0o644),
            (&own, 0o040, 0o440),
            (&own_fixed, 0o600, 0o660),
        ] {
            assert_eq!(mode_of(layout, mode), given);
            assert!(is_set(&seen(given, ours), layout));
        }
        assert!(is_set(&seen(0o600, ours + 1), &keep));
        assert!(!is_set(&seen(0o600, ours + 1), &own));
        for (layout, mode, uid, stands) in [
            (&keep, 0o600, ours, true),
            (&keep, 0o4640, ours, false),
            (&fixed, 0o640, ours + 1, true),
            (&fixed, 0o660, ours, false),
            (&own, 0o640, ours, true),
            (&own, 0o640, ours + 1, false),
            (&own, 0o660, ours, false),
        ] {
            let set = seen(0o640, ours);
            assert_eq!(is_still_set(&seen(mode, uid), &set, layout), stands);
        }
    }
}
