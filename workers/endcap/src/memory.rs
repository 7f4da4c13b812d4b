//! Where memory comes from: jemalloc; on Linux, where it stands in the system's place, also for what is written in C, librdkafka most of all.

/// Threads hand records and rows on to each other and free what others have allocated: librdkafka's threads, the one that polls and the stage,
/// for each hop. mimalloc was as fast in everything measured, models included, and kept half as much memory again for four busy hops and a quarter more for
/// models: its threads give back what others freed late.
///
/// Free memory goes back to the system after ten seconds, by threads of jemalloc's own: without them it would wait for the next allocation of whoever freed it,
/// which an idle process does not make.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;
