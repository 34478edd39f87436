//! Cores, memory and instruction sets of the machine, as far as this process may use them.
//!
//! Containers lie: the machine's core count and RAM are not ours to use. Everything here respects
//! the affinity mask and both versions of control groups. Nothing here fails: what cannot be read
//! is reported as the most cautious sensible value.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Memory this process may use, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ram {
    /// The machine's RAM, or the control group's limit if that is lower.
    pub total: u64,
    /// What can still be allocated without swapping, under both limits.
    pub available: u64,
}

/// Logical CPUs this process may run on, ascending; never empty.
pub fn allowed_cpus() -> Vec<usize> {
    let mask = sched_getaffinity(None);
    let cpus: Vec<usize> = match mask {
        Ok(set) => (0..CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).collect(),
        Err(_) => Vec::new(),
    };
    if cpus.is_empty() { vec![0] } else { cpus }
}

/// One allowed logical CPU per physical core, ascending; never empty.
///
/// Hyper-threads share the vector units and caches that bound us, so workers want cores.
pub fn physical_cores() -> Vec<usize> {
    let mut seen = BTreeSet::new();
    let first_of_core = |cpu: &usize| seen.insert(core_key(*cpu));
    allowed_cpus().into_iter().filter(first_of_core).collect()
}

/// (package, core) of a logical CPU; the CPU itself where sysfs does not say.
fn core_key(cpu: usize) -> (usize, usize) {
    let topology = format!("/sys/devices/system/cpu/cpu{cpu}/topology");
    let field = |name: &str| read_number(&Path::new(&topology).join(name));
    match (field("physical_package_id"), field("core_id")) {
        (Some(package), Some(core)) => (package as usize, core as usize),
        _ => (usize::MAX, cpu),
    }
}

/// Number of workers to start by default: physical cores, but no more than the control group's
/// CPU quota pays for.
pub fn default_threads() -> usize {
    let cores = physical_cores().len();
    match cpu_quota(&cgroup_dirs()) {
        Some(quota) => cores.min(quota.ceil() as usize).max(1),
        None => cores,
    }
}

/// Binds the calling thread to one logical CPU.
///
/// # Errors
/// If the CPU does not exist or the process may not use it.
pub fn pin_current_thread(cpu: usize) -> io::Result<()> {
    if cpu >= CpuSet::MAX_CPU {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut set = CpuSet::new();
    set.set(cpu);
    Ok(sched_setaffinity(None, &set)?)
}

/// Memory this process may use, now.
pub fn ram() -> Ram {
    let info = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let mut ram = parse_meminfo(&info);
    for dir in cgroup_dirs() {
        if let Some((limit, used)) = memory_limit(&dir) {
            ram.total = ram.total.min(limit);
            ram.available = ram.available.min(limit.saturating_sub(used));
        }
    }
    ram
}

fn parse_meminfo(info: &str) -> Ram {
    let field = |name: &str| {
        let line = info.lines().find(|line| line.starts_with(name))?;
        line.split_ascii_whitespace().nth(1)?.parse::<u64>().ok()
    };
    let total = field("MemTotal:").unwrap_or(0) * 1024;
    Ram { total, available: field("MemAvailable:").map_or(total, |kib| kib * 1024) }
}

/// This process's control groups and all their ancestors, for both versions of the interface:
/// every level may carry a limit.
fn cgroup_dirs() -> Vec<PathBuf> {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let mut dirs = Vec::new();
    for line in own.lines() {
        // `id:controllers:path`; version 2 has id 0 and no controllers.
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let root = match controllers {
            "" => PathBuf::from("/sys/fs/cgroup"),
            _ => Path::new("/sys/fs/cgroup").join(controllers),
        };
        let relative = Path::new(path.trim_start_matches('/'));
        dirs.extend(relative.ancestors().map(|level| root.join(level)));
    }
    dirs
}

/// (limit, used without reclaimable file pages) in bytes of one control group, if it has a limit.
fn memory_limit(dir: &Path) -> Option<(u64, u64)> {
    let (limit, used, inactive) = match read_number(&dir.join("memory.max")) {
        Some(limit) => (limit, read_number(&dir.join("memory.current")), "inactive_file "),
        None => (
            read_number(&dir.join("memory.limit_in_bytes"))?,
            read_number(&dir.join("memory.usage_in_bytes")),
            "total_inactive_file ",
        ),
    };
    let stat = fs::read_to_string(dir.join("memory.stat")).unwrap_or_default();
    let reclaimable = stat
        .lines()
        .find_map(|line| line.strip_prefix(inactive))
        .and_then(|n| n.trim().parse::<u64>().ok());
    Some((limit, used.unwrap_or(0).saturating_sub(reclaimable.unwrap_or(0))))
}

/// The lowest CPU quota of these control groups, in CPUs.
fn cpu_quota(dirs: &[PathBuf]) -> Option<f64> {
    let quota = |dir: &PathBuf| {
        if let Ok(text) = fs::read_to_string(dir.join("cpu.max")) {
            let mut parts = text.split_ascii_whitespace().map(str::parse::<f64>);
            let (quota, period) = (parts.next()?.ok()?, parts.next()?.ok()?);
            return Some(quota / period);
        }
        // Version 1 writes -1 for "no quota", which does not parse as unsigned.
        let quota = read_number(&dir.join("cpu.cfs_quota_us"))?;
        let period = read_number(&dir.join("cpu.cfs_period_us"))?;
        Some(quota as f64 / period as f64)
    };
    dirs.iter().filter_map(quota).filter(|q| *q > 0.0).reduce(f64::min)
}

fn read_number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The processor's name as the kernel reports it, for display.
pub fn model_name() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    cpuinfo_field(&info, "model name").unwrap_or("unknown processor").to_owned()
}

/// Instruction sets that matter here and that this machine has, in the kernel's spelling, for
/// display. Kernels choose by [`crate::isa`], never by this list.
pub fn features() -> Vec<&'static str> {
    const NAMES: [&str; 17] = [
        "avx",
        "f16c",
        "fma",
        "avx2",
        "avx_vnni",
        "avx512f",
        "avx512bw",
        "avx512vl",
        "avx512vbmi",
        "avx512_vnni",
        "avx512_bf16",
        "avx512_fp16",
        "amx_tile",
        "amx_int8",
        "amx_bf16",
        "asimddp",
        "i8mm",
    ];
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = cpuinfo_field(&info, "flags").or_else(|| cpuinfo_field(&info, "Features"));
    let flags: BTreeSet<&str> = flags.unwrap_or("").split_ascii_whitespace().collect();
    NAMES.into_iter().filter(|name| flags.contains(name)).collect()
}

fn cpuinfo_field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_are_a_subset_of_the_allowed_cpus() {
        let allowed = allowed_cpus();
        let cores = physical_cores();
        assert!(!cores.is_empty() && cores.iter().all(|core| allowed.contains(core)));
        assert!((1..=cores.len()).contains(&default_threads()));
    }

    #[test]
    fn ram_is_plausible() {
        let ram = ram();
        assert!(ram.total > 64 << 20, "{ram:?}");
        assert!(ram.available <= ram.total);
        assert!(!model_name().is_empty());
    }

    #[test]
    fn meminfo_parses() {
        let ram = parse_meminfo("MemTotal:       100 kB\nMemFree: 7 kB\nMemAvailable:  60 kB\n");
        assert_eq!(ram, Ram { total: 102_400, available: 61_440 });
        assert_eq!(parse_meminfo(""), Ram { total: 0, available: 0 });
    }

    #[test]
    fn limits_of_both_cgroup_versions() {
        let root = std::env::temp_dir().join(format!("moeba-cgroup-{}", std::process::id()));
        let write = |dir: &str, name: &str, text: &str| {
            fs::create_dir_all(root.join(dir)).unwrap();
            fs::write(root.join(dir).join(name), text).unwrap();
        };
        write("two", "memory.max", "1000\n");
        write("two", "memory.current", "700\n");
        write("two", "memory.stat", "anon 5\ninactive_file 300\n");
        write("two", "cpu.max", "150000 100000\n");
        write("one", "memory.limit_in_bytes", "2000\n");
        write("one", "memory.usage_in_bytes", "500\n");
        write("one", "cpu.cfs_quota_us", "-1\n");
        write("one", "cpu.cfs_period_us", "100000\n");
        write("none", "memory.max", "max\n");
        write("none", "cpu.max", "max 100000\n");
        assert_eq!(memory_limit(&root.join("two")), Some((1000, 400)));
        assert_eq!(memory_limit(&root.join("one")), Some((2000, 500)));
        assert_eq!(memory_limit(&root.join("none")), None);
        assert_eq!(cpu_quota(&[root.join("none"), root.join("one"), root.join("two")]), Some(1.5));
        assert_eq!(cpu_quota(&[root.join("none")]), None);
        fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn pinning_to_a_cpu_that_is_not_there_fails() {
        assert!(pin_current_thread(1 << 20).is_err());
    }
}
