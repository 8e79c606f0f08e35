//! Reservations and names of instances: the one writer of dnsmasq's host files, and their plan.
//!
//! Names and reservations that people added have files of their own. An instance has two files named by its id, one in dnsmasq's `dhcp-hostsdir` and one in its
//! `hostsdir`. What dnsmasq 2.90 does with them, found out by trying:
//! * a file added to either is read at once (inotify), and events are handled in order;
//! * a names file replaced or removed is followed at once, too;
//! * a reservation replaced or removed stays in force until SIGHUP.
//!
//! So reservations go or change by removal and SIGHUP first, and are then written anew. Planning is
//! pure; [`Reader`] and [`write()`] are the only parts that touch files.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::Path;
use std::time::{Duration, Instant};

use api::{Domain, HostName, InstanceName, MacAddr};
use wire::gateway::change::Sides;
use wire::gateway::{GatewayState, NameRecord};

use super::paths::Paths;
use super::word::{UnsafeWord, word};
use crate::durable::{self, FileError, Keep};

/// The files of one of the two directories: name to content.
pub type Files = BTreeMap<String, String>;

/// All host files, as they are or as they should be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostFiles {
    /// `dhcp-hostsdir`.
    pub reservations: Files,
    /// `hostsdir`.
    pub names: Files,
}

/// An instance's reserved address as it stands in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reservation {
    /// The Ethernet address it is for.
    pub mac: MacAddr,
    /// The address that it gets.
    pub address: Ipv4Addr,
}

impl fmt::Display for Reservation {
    /// One line that [`parse_reservation`] reads.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{},{}", self.mac, self.address)
    }
}

/// The files that `state` asks for. `outside` is the appliance's address on the WAN side, where names are
/// answered there: a second address of all names that the proxy answers for.
pub fn wanted(state: &GatewayState, outside: Option<Ipv4Addr>) -> Result<HostFiles, UnsafeWord> {
    let routed: BTreeSet<&HostName> = state.routes.iter().map(|r| &r.host).collect();
    let proxied = |name: &HostName| match outside {
        Some(wan) if routed.contains(name) => format!("{wan} {name}\n"),
        _ => String::new(),
    };
    let mut files = HostFiles::default();
    let (domain, lease_s) = (word(&state.network.domain)?, word(state.network.lease_s)?);
    for host in &state.hosts {
        let (file, name, address) = (
            word(&host.instance)?,
            word(&host.name)?,
            word(host.address)?,
        );
        let mac = word(host.mac)?;
        // No name here: it would become a DNS name that stays as long as the lease.
        let reservation = format!("{mac},{address},{lease_s}\n");
        let full = HostName::in_domain(&host.name, &state.network.domain);
        let names = format!("{address} {name}.{domain} {name}\n{}", proxied(&full));
        files.reservations.insert(file.clone(), reservation);
        files.names.insert(file, names);
    }
    for record in &state.edge.names {
        let (file, names) = added_name(record, &state.network.domain)?;
        files.names.insert(file, names + &proxied(&record.name));
    }
    for kept in &state.edge.reservations {
        let (mac, address) = (word(kept.mac)?, word(kept.address)?);
        let file = format!("mac-{}", mac.replace(':', "-"));
        files
            .reservations
            .insert(file, format!("{mac},{address},{lease_s}\n"));
    }
    Ok(files)
}

/// The file of a name that is no instance's. Ids of instances begin with `i-`, so no other file has its name.
fn added_name(record: &NameRecord, domain: &Domain) -> Result<(String, String), UnsafeWord> {
    let (name, address) = (word(&record.name)?, word(record.address)?);
    let domain = word(domain)?;
    let short = name.strip_suffix(&domain).and_then(|s| s.strip_suffix('.'));
    let names = match short.filter(|short| !short.contains('.')) {
        Some(short) => format!("{address} {name} {short}\n"),
        None => format!("{address} {name}\n"),
    };
    Ok((format!("name-{name}"), names))
}

/// What is to be done about some added names alone, where nothing is answered on the WAN side. Reads no other files.
pub fn plan_names(
    paths: &Paths,
    change: &Sides<'_, NameRecord>,
    state: &GatewayState,
) -> Result<HostPlan, PlanError> {
    let domain = &state.network.domain;
    let (mut wanted, mut found) = (HostFiles::default(), HostFiles::default());
    for record in change.after {
        let (file, names) = added_name(record, domain)?;
        wanted.names.insert(file, names);
    }
    for record in change.before.iter().chain(change.after) {
        let (file, _) = added_name(record, domain)?;
        if let Some(names) = durable::read_if_there(&paths.names().join(&file))? {
            let names = String::from_utf8_lossy(&names).into_owned();
            found.names.insert(file, names);
        }
    }
    let mut plan = HostPlan::new(&wanted, &found);
    // An instance may answer to the same name now.
    let is_answered = |record: &NameRecord| {
        let mut hosts = state.hosts.iter().filter(|h| h.address == record.address);
        hosts.any(|h| HostName::in_domain(&h.name, domain) == record.name)
    };
    plan.gone.retain(|record| !is_answered(record));
    plan.renamed.retain(|record| !is_answered(record));
    Ok(plan)
}

/// Why it is not known what to do about names.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// A value would be more than a word in a file.
    #[error(transparent)]
    Word(#[from] UnsafeWord),
    /// A file could not be read.
    #[error(transparent)]
    File(#[from] FileError),
}

/// Reads a reservation back.
pub fn parse_reservation(content: &str) -> Option<Reservation> {
    let mut fields = content.trim_end().split(',');
    Some(Reservation {
        mac: fields.next()?.parse().ok()?,
        address: fields.next()?.parse().ok()?,
    })
}

/// Reads the record of a names file back.
pub fn parse_names(content: &str) -> Option<NameRecord> {
    let mut words = content.split_ascii_whitespace();
    let address = words.next()?.parse().ok()?;
    let name = words.next()?.parse().ok()?;
    Some(NameRecord { name, address })
}

/// What has to be done to the files, in the order of the fields.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct HostPlan {
    /// Reservation files to remove, which takes a SIGHUP to be effective. Changed ones are among
    /// them and written anew afterwards.
    pub forget: Vec<String>,
    /// Names files to remove.
    pub unname: Vec<String>,
    /// Reservations that hold no more; their leases are given back.
    pub released: Vec<Reservation>,
    /// Names that must not have these addresses any more once the files are gone.
    pub gone: Vec<NameRecord>,
    /// Reservation files to write.
    pub reserve: Files,
    /// Names files to write.
    pub name: Files,
    /// Names that must not have these addresses any more once files are replaced.
    pub renamed: Vec<NameRecord>,
    /// Names of the hosts withdrawn.
    pub withdrawn: Vec<InstanceName>,
    /// Names of the hosts published or changed.
    pub published: Vec<InstanceName>,
}

impl HostPlan {
    /// What `wanted` asks for where `found` stands now.
    pub fn new(wanted: &HostFiles, found: &HostFiles) -> Self {
        let mut plan = Self::default();
        let kept: Vec<_> = wanted
            .reservations
            .values()
            .filter_map(|c| parse_reservation(c))
            .collect();
        for (file, content) in &found.reservations {
            if wanted.reservations.get(file) != Some(content) {
                plan.forget.push(file.clone());
                let reservation = parse_reservation(content);
                plan.released
                    .extend(reservation.filter(|r| !kept.contains(r)));
            }
        }
        plan.reserve = missing(&wanted.reservations, &found.reservations);
        plan.plan_names(wanted, found);
        plan
    }

    fn plan_names(&mut self, wanted: &HostFiles, found: &HostFiles) {
        let (mut unnamed, mut replaced) = (Vec::new(), Vec::new());
        for (file, content) in &found.names {
            match wanted.names.get(file) {
                Some(same) if same == content => {}
                Some(_) => replaced.extend(parse_names(content)),
                None => {
                    self.unname.push(file.clone());
                    unnamed.extend(parse_names(content));
                }
            }
        }
        if !unnamed.is_empty() || !replaced.is_empty() {
            let kept = wanted.names.values().filter_map(|c| parse_names(c));
            let kept: BTreeSet<NameRecord> = kept.collect();
            let names = unnamed.iter().filter_map(|r| instance_name(&r.name));
            self.withdrawn.extend(names);
            let stale = |r: &NameRecord| !kept.contains(r);
            self.gone.extend(unnamed.into_iter().filter(stale));
            self.renamed.extend(replaced.into_iter().filter(stale));
        }
        self.name = missing(&wanted.names, &found.names);
        self.published = wanted
            .names
            .iter()
            .filter(|(file, _)| self.name.contains_key(*file) || self.reserve.contains_key(*file))
            .filter_map(|(_, content)| instance_name(&parse_names(content)?.name))
            .collect();
        self.published.sort();
        self.withdrawn.sort();
    }

    /// Reservations that will be written.
    pub fn reserved(&self) -> Vec<Reservation> {
        let contents = self.reserve.values();
        contents.filter_map(|c| parse_reservation(c)).collect()
    }

    /// Records that DNS must answer when the plan is done.
    pub fn present(&self) -> Vec<NameRecord> {
        self.name.values().filter_map(|c| parse_names(c)).collect()
    }
}

/// Files of `wanted` that are not in `found` as they should be.
fn missing(wanted: &Files, found: &Files) -> Files {
    let differs = |(file, content): &(&String, &String)| found.get(*file) != Some(*content);
    let owned = |(file, content): (&String, &String)| (file.clone(), content.clone());
    wanted.iter().filter(differs).map(owned).collect()
}

fn instance_name(host: &HostName) -> Option<InstanceName> {
    host.as_str().split('.').next()?.parse().ok()
}

/// How long a file that looks the same from outside is believed to hold the same.
const BELIEVED: Duration = Duration::from_secs(10);

/// What was read of the host files: who looks again opens only those that changed. Whoever replaces a file gives it
/// another number, which the list of its directory tells; every few seconds lengths and times are looked at, too.
#[derive(Debug, Default)]
pub struct Reader {
    reservations: Known,
    names: Known,
    looked: Option<Instant>,
}

/// Files of one directory as they were last read.
type Known = BTreeMap<String, (Stamp, String)>;

/// Device, number, length, and the two times of a file, with their nanoseconds.
#[derive(Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    number: u64,
    length: u64,
    times: [i64; 4],
}

impl Reader {
    /// All host files as they are. Files that a crash left half-written (dot files) are removed.
    pub fn read(&mut self, paths: &Paths) -> Result<HostFiles, FileError> {
        let look = if self.looked.is_some_and(|at| at.elapsed() < BELIEVED) {
            Look::AtNumbers
        } else {
            self.looked = Some(Instant::now());
            Look::AtEach
        };
        Ok(HostFiles {
            reservations: read_directory(&paths.reservations(), &mut self.reservations, look)?,
            names: read_directory(&paths.names(), &mut self.names, look)?,
        })
    }

    /// These files are about to be written: one that was removed before may leave them its number.
    pub fn forget(&mut self, plan: &HostPlan) {
        self.reservations
            .retain(|file, _| !plan.reserve.contains_key(file));
        self.names.retain(|file, _| !plan.name.contains_key(file));
    }
}

/// How a file that was read before is compared with what it is now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    AtEach,
    AtNumbers,
}

fn stamp(facts: &fs::Metadata) -> Stamp {
    let times = [
        facts.mtime(),
        facts.mtime_nsec(),
        facts.ctime(),
        facts.ctime_nsec(),
    ];
    Stamp {
        device: facts.dev(),
        number: facts.ino(),
        length: facts.len(),
        times,
    }
}

fn read_directory(directory: &Path, known: &mut Known, look: Look) -> Result<Files, FileError> {
    let mut before = std::mem::take(known);
    let mut files = Files::new();
    let list = match fs::read_dir(directory) {
        Ok(list) => list,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(files),
        Err(e) => return Err(FileError::new("list", directory)(e)),
    };
    for entry in list {
        let entry = entry.map_err(FileError::new("list", directory))?;
        let path = entry.path();
        let Ok(file) = entry.file_name().into_string() else {
            durable::remove_if_there(&path)?;
            continue;
        };
        if file.starts_with('.') {
            durable::remove_if_there(&path)?;
            continue;
        }
        let mut last = before.remove(&file);
        if look == Look::AtNumbers
            && let Some((then, content)) = last.take_if(|(then, _)| then.number == entry.ino())
        {
            files.insert(file.clone(), content.clone());
            known.insert(file, (then, content));
            continue;
        }
        let now = match entry.metadata() {
            Ok(facts) => stamp(&facts),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            Err(e) => return Err(FileError::new("look at", &path)(e)),
        };
        let content = match last {
            Some((then, content)) if then == now => Some(content),
            _ => durable::read_if_there(&path)?
                .map(|content| String::from_utf8_lossy(&content).into_owned()),
        };
        if let Some(content) = content {
            known.insert(file.clone(), (now, content.clone()));
            files.insert(file, content);
        }
    }
    Ok(files)
}

/// The records of all names files, sorted by name.
pub fn records(paths: &Paths) -> Result<Vec<NameRecord>, FileError> {
    let names = read_directory(&paths.names(), &mut Known::new(), Look::AtEach)?;
    let mut records: Vec<_> = names.values().filter_map(|c| parse_names(c)).collect();
    records.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(records)
}

/// Writes files by renaming, so that dnsmasq never reads a half of one.
pub fn write(directory: &Path, files: &Files) -> Result<(), FileError> {
    files.iter().try_for_each(|(file, content)| {
        durable::replace(
            &directory.join(file),
            content.as_bytes(),
            0o644,
            Keep::Derived,
        )
    })
}

/// Removes files; those that are gone already are fine.
pub fn remove(directory: &Path, files: &[String]) -> Result<(), FileError> {
    files
        .iter()
        .try_for_each(|file| durable::remove_if_there(&directory.join(file)).map(|_| ()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::fake::{self, host};
    use proptest::prelude::*;

    #[test]
    fn the_files_of_the_default_state() {
        insta::assert_debug_snapshot!(wanted(&fake::state(), None).unwrap());
    }

    #[test]
    fn nothing_to_do_when_all_is_there() {
        let files = wanted(&fake::state(), None).unwrap();
        assert_eq!(HostPlan::new(&files, &files), HostPlan::default());
    }

    #[test]
    fn an_address_that_moves_to_another_instance_is_forgotten_first() {
        let mut state = fake::state();
        let before = wanted(&state, None).unwrap();
        state.hosts[0] = host(9, "next", 100);
        insta::assert_debug_snapshot!(HostPlan::new(&wanted(&state, None).unwrap(), &before));
    }

    #[test]
    fn a_renamed_host_keeps_its_lease() {
        let mut state = fake::state();
        let before = wanted(&state, None).unwrap();
        state.hosts[0].name = "other".parse().unwrap();
        let plan = HostPlan::new(&wanted(&state, None).unwrap(), &before);
        assert!(plan.forget.is_empty() && plan.released.is_empty() && plan.unname.is_empty());
        assert_eq!(plan.renamed[0].name.as_str(), "web.prox.local");
        assert_eq!(plan.present()[0].name.as_str(), "other.prox.local");
    }

    #[test]
    fn foreign_and_half_written_files_go() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::below(dir.path());
        fs::create_dir_all(paths.names()).unwrap();
        fs::create_dir_all(paths.reservations()).unwrap();
        fs::write(paths.names().join(".i-1.new"), "half").unwrap();
        fs::write(paths.names().join("evil"), "10.20.0.1 bank.example").unwrap();
        let plan = HostPlan::new(
            &HostFiles::default(),
            &Reader::default().read(&paths).unwrap(),
        );
        assert_eq!(plan.unname, ["evil"]);
        assert!(!paths.names().join(".i-1.new").exists());
    }

    #[test]
    fn what_changed_is_seen_by_who_has_read_before() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::below(dir.path());
        fs::create_dir_all(paths.names()).unwrap();
        let mut reader = Reader::default();
        let mut names = |file: &str, content: Option<&str>| {
            let path = paths.names().join(file);
            match content {
                Some(text) => durable::replace(&path, text.as_bytes(), 0o644, Keep::Derived),
                None => durable::remove_if_there(&path).map(drop),
            }
            .unwrap();
            // Twice: what was just read is known the second time.
            let read = reader.read(&paths).unwrap().names;
            assert_eq!(reader.read(&paths).unwrap().names, read);
            read.into_iter()
                .flat_map(|(f, c)| [f, c])
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert_eq!(names("a", Some("one")), "a one");
        assert_eq!(names("b", Some("two")), "a one b two");
        assert_eq!(names("a", Some("six")), "a six b two");
        assert_eq!(names("b", None), "a six");
    }

    #[test]
    fn what_somebody_writes_into_a_file_is_seen_in_time() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::below(dir.path());
        fs::create_dir_all(paths.names()).unwrap();
        let file = paths.names().join("a");
        fs::write(&file, "one").unwrap();
        let mut reader = Reader::default();
        assert_eq!(reader.read(&paths).unwrap().names["a"], "one");
        fs::write(&file, "other").unwrap();
        reader.looked = Instant::now().checked_sub(BELIEVED);
        assert_eq!(reader.read(&paths).unwrap().names["a"], "other");
        // What is about to be written is not believed at all.
        let plan = HostPlan {
            name: Files::from([("a".into(), "again".into())]),
            ..HostPlan::default()
        };
        reader.forget(&plan);
        fs::write(&file, "again").unwrap();
        assert_eq!(reader.read(&paths).unwrap().names["a"], "again");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(state in fake::any_state()) {
            let files = wanted(&state, None).unwrap();
            prop_assert_eq!(files.names.len(), state.hosts.len());
            for host in &state.hosts {
                let reservation = &files.reservations[host.instance.as_str()];
                prop_assert_eq!(reservation.lines().count(), 1);
                let parsed = parse_reservation(reservation).unwrap();
                prop_assert_eq!(parsed, Reservation { mac: host.mac, address: host.address });
                let names = &files.names[host.instance.as_str()];
                prop_assert_eq!(names.lines().count(), 1);
                let record = parse_names(names).unwrap();
                prop_assert_eq!(record.address, host.address);
                prop_assert_eq!(record.name, HostName::in_domain(&host.name, &state.network.domain));
            }
        }

        #[test]
        fn a_plan_leads_from_any_state_to_any_other(before in fake::any_state(), after in fake::any_state()) {
            let (mut files, target) = (wanted(&before, None).unwrap(), wanted(&after, None).unwrap());
            let plan = HostPlan::new(&target, &files);
            files.reservations.retain(|f, _| !plan.forget.contains(f));
            files.names.retain(|f, _| !plan.unname.contains(f));
            files.reservations.extend(plan.reserve.clone());
            files.names.extend(plan.name.clone());
            prop_assert_eq!(&files, &target);
            // Nothing is released or taken for gone that the target still has.
            for r in &plan.released {
                prop_assert!(!after.hosts.iter().any(|h| h.mac == r.mac && h.address == r.address));
            }
        }
    }
}
