//! The allocator: jemalloc, told to give memory back soon.
//!
//! The C library's gives the end of its heap back with almost every chunk of a stream that is freed, and faults it in again with the
//! next one. Processor time of both proxies for a GiB between two nodes, medians of three alternating runs on 2 cores, of one stream
//! and of eight:
//!
//! | allocator | one | eight |
//! |---|---|---|
//! | the C library's | 1.59 s | 2.08 s |
//! | the same, with trimming from 8 MiB on | 1.27 s | 1.43 s |
//! | mimalloc | 1.34 s | 1.43 s, and 16 MiB more of memory for each proxy |
//! | jemalloc | 1.09 s | 1.27 s |
//!
//! It can tell what holds its memory (`profile::heap`) if it is told at its start that it may be asked. Until then that takes 0.01 of
//! 10 MiB of an idle process and no time; ready to be asked, 0.15 MiB.

use tikv_jemallocator::Jemalloc;

#[global_allocator]
static JEMALLOC: Jemalloc = Jemalloc;

/// jemalloc's options (its manual, section "TUNING"). Freed pages go back to the system after 0.2 s in place of ten, also when nobody
/// allocates any more: what a burst took must not stay with an idle proxy. A thread keeps freed pieces of 20 KiB at most, which a TLS
/// record fits, and not of 32. With a second and 32 KiB the two proxies between nodes held 38 MiB under pings on 64 connections in place
/// of 32, 34 in place of 30 while connections came and went, 47 in place of 38 under eight streams; processor time, in turns, was the same
/// for connections and streams of one, and 2 % more for eight.
// SAFETY: jemalloc declares a pointer to a string that ends with a zero byte under this name, which nothing else defines; a reference
// to an array is such a pointer, and what it refers to is never freed.
#[unsafe(export_name = "_rjem_malloc_conf")]
static OPTIONS: &[u8; 101] =
    b"background_thread:true,max_background_threads:1,dirty_decay_ms:200,muzzy_decay_ms:0,tcache_max:20480\0";
