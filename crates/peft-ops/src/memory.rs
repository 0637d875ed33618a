//! Settings of the system's allocator.

#![allow(unsafe_code)]

/// Tells the C library's allocator to keep freed memory for the next training step. To be called once, at
/// the start of `main`, in programs that train; returns whether there was something to tell (Linux with
/// the GNU C library).
///
/// By default every large block is mapped anew and given back when it is freed, so that the kernel clears
/// the same pages in every step: a tenth of the time, more in full fine-tuning. With this, a step reuses
/// the memory of the one before, and resident memory stays within a few percent of what is live (an
/// allocator like mimalloc is as fast, but needs a quarter more).
///
/// The setting is the process's: it holds for all threads and libraries in it.
///
/// The program's memory is given back when it ends, or with [`give_back_freed_memory`].
pub fn keep_freed_memory() -> bool {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // SAFETY: sets two integers of the allocator, under its own lock. They hold for the whole process, also for
        // what other libraries in it allocate.
        unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 30) == 1
                && libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX) == 1
        }
    }
    #[cfg(not(all(target_os = "linux", target_env = "gnu")))]
    false
}

/// Gives memory that is free back to the system, as far as it can: after something that needed much for a while,
/// as loading a model does. Returns whether there was something to give (Linux with the GNU C library).
pub fn give_back_freed_memory() -> bool {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // SAFETY: takes the allocator's own lock, and touches free memory only.
        unsafe { libc::malloc_trim(0) == 1 }
    }
    #[cfg(not(all(target_os = "linux", target_env = "gnu")))]
    false
}
