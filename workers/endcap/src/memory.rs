//! Where memory comes from: jemalloc; on Linux, where it stands in the system's place, also for what is written in C, librdkafka most of all.

/// Threads hand records and rows on to each other and free what others have allocated: librdkafka's threads, the one that polls and the stage,
/// for each hop. mimalloc was as fast in everything measured, models included, and kept half as much memory again for four busy hops and a quarter more for
/// models: its threads give back what others freed late.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// What jemalloc reads when a process starts; the environment (`MALLOC_CONF`) goes before it. Large blocks stay for ten seconds as all others do:
/// by its own defaults it gives those of 8 MiB and more back at once, which took models 8 % more time.
#[cfg_attr(target_os = "linux", unsafe(export_name = "malloc_conf"))]
#[cfg_attr(not(target_os = "linux"), unsafe(export_name = "_rjem_malloc_conf"))]
static CONF: &[u8; 21] = b"oversize_threshold:0\0";
