//! The allocator: mimalloc for what is small, the kernel itself for what is large.
//!
//! mimalloc keeps what is freed for a second in case it is wanted again. That makes small pieces fast (without it, a tenth fewer
//! small files are ingested in a second), and large ones count twice: when a table grows, when one large document follows
//! another. So those are mapped, and gone at once when they are freed; and to grow they are not copied, only their page tables.
//!
//! # Safety
//! [`Allocator`] has to keep the promises of [`GlobalAlloc`]. Which of the two a piece is from follows from its layout alone, and
//! whoever frees a piece has to name the layout that it was asked for with; so it goes back to where it came from.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout};
use std::ptr::{self, NonNull};

use mimalloc::MiMalloc;
use rustix::mm::{MapFlags, MremapFlags, ProtFlags, mmap_anonymous, mremap, munmap};

/// From so many bytes on, a piece is mapped. To map and touch as many anew takes far less time than anybody takes to fill them.
const MAPPED_BYTES: usize = 8 << 20;
/// What a mapping is a multiple of at least, wherever Linux runs.
const PAGE_BYTES: usize = 4 << 10;

/// Memory of the whole program.
#[derive(Debug)]
pub struct Allocator;

fn is_mapped(layout: Layout) -> bool {
    layout.size() >= MAPPED_BYTES && layout.align() <= PAGE_BYTES
}

/// New pages; null if there are none.
fn map(bytes: usize) -> *mut u8 {
    let access = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: the kernel chooses an address where nothing is.
    let mapped = unsafe { mmap_anonymous(ptr::null_mut(), bytes, access, MapFlags::PRIVATE) };
    mapped.map_or(ptr::null_mut(), |mapped| mapped.cast())
}

// SAFETY: pieces are those of mimalloc, or mappings of their own with room for the layout, aligned to a page; what is mapped is
// zero, and stays where it is until it is freed or moved by `realloc`, which invalidates what was there. Nothing unwinds.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if is_mapped(layout) {
            return map(layout.size());
        }
        // SAFETY: as the caller promised.
        unsafe { MiMalloc.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if is_mapped(layout) {
            return map(layout.size());
        }
        // SAFETY: as the caller promised.
        unsafe { MiMalloc.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, piece: *mut u8, layout: Layout) {
        if is_mapped(layout) {
            // SAFETY: a mapping of that length, which `map` or `realloc` made for this layout, and nobody's any longer.
            let unmapped = unsafe { munmap(piece.cast(), layout.size()) };
            // It fails if there would be too many mappings, which ends of whole ones never make.
            debug_assert!(unmapped.is_ok());
            return;
        }
        // SAFETY: as the caller promised, and from there.
        unsafe { MiMalloc.dealloc(piece, layout) }
    }

    unsafe fn realloc(&self, piece: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        // SAFETY: the caller promised that `bytes`, rounded up to the alignment, is no more than isize::MAX.
        let new = unsafe { Layout::from_size_align_unchecked(bytes, layout.align()) };
        match (is_mapped(layout), is_mapped(new)) {
            // SAFETY: as the caller promised, and from there.
            (false, false) => unsafe { MiMalloc.realloc(piece, layout, bytes) },
            (true, true) => {
                // SAFETY: a whole mapping of that length, which the caller gives up unless this fails.
                let moved =
                    unsafe { mremap(piece.cast(), layout.size(), bytes, MremapFlags::MAYMOVE) };
                moved.map_or(ptr::null_mut(), |moved| moved.cast())
            }
            _ => {
                // SAFETY: not of no bytes, as neither is of the two.
                let Some(moved) = NonNull::new(unsafe { self.alloc(new) }) else {
                    return ptr::null_mut();
                };
                // SAFETY: both have room for the smaller of the two, and cannot overlap, since both are allocated.
                unsafe {
                    moved.copy_from_nonoverlapping(
                        NonNull::new_unchecked(piece),
                        layout.size().min(bytes),
                    )
                };
                // SAFETY: as the caller promised.
                unsafe { self.dealloc(piece, layout) };
                moved.as_ptr()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    /// Whether each page of the piece is what it should be, and then fills it anew.
    ///
    /// # Safety
    /// The piece has so many bytes, of which the first `written` are initialised.
    unsafe fn assert_filled(piece: *mut u8, written: usize, bytes: usize, with: u8) {
        // SAFETY: as the caller promised.
        let seen = unsafe { std::slice::from_raw_parts(piece, written) };
        assert!(seen.iter().all(|&byte| byte == with));
        // SAFETY: as the caller promised.
        unsafe { piece.write_bytes(with + 1, bytes) };
    }

    #[test]
    fn pieces_keep_what_is_in_them_whatever_they_become() {
        for align in [1, 16, PAGE_BYTES, 4 * PAGE_BYTES] {
            let sizes = [
                10,
                MAPPED_BYTES - 1,
                MAPPED_BYTES,
                3 * MAPPED_BYTES + 1,
                2 * MAPPED_BYTES,
                40 * MIB + 5,
                MAPPED_BYTES - 1,
                1,
            ];
            let mut layout = Layout::from_size_align(sizes[0], align).unwrap();
            // SAFETY: what is asked for has bytes; pieces are used within them, and freed once, by their layouts.
            unsafe {
                let mut piece = Allocator.alloc_zeroed(layout);
                assert_filled(piece, sizes[0], sizes[0], 0);
                for (step, &bytes) in (1..).zip(&sizes[1..]) {
                    piece = Allocator.realloc(piece, layout, bytes);
                    assert!(piece.addr().is_multiple_of(align));
                    assert_filled(piece, layout.size().min(bytes), bytes, step);
                    layout = Layout::from_size_align(bytes, align).unwrap();
                }
                Allocator.dealloc(piece, layout);
            }
        }
    }
}
