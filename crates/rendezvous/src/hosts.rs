//! Slurm's lists of hosts: `n[01-03,7]-ib,login`.

use collectives_core::{Error, ErrorKind, Result};

/// The hosts of a list as Slurm writes it (`SLURM_JOB_NODELIST`), in Slurm's order.
///
/// A bracket holds numbers and ranges, whose leading zeros count; a name may have several. The
/// last bracket runs fastest.
///
/// # Errors
/// [`ErrorKind::InvalidArgument`], with the list, where brackets do not match, a range is none, or
/// there are more than 65,536 hosts.
///
/// # Examples
/// ```
/// use collectives_rendezvous::parse_host_list;
///
/// let hosts = parse_host_list("n[08-10,7]-ib,login")?;
/// assert_eq!(hosts, ["n08-ib", "n09-ib", "n10-ib", "n7-ib", "login"]);
/// # Ok::<(), collectives_core::Error>(())
/// ```
pub fn parse_host_list(list: &str) -> Result<Vec<String>> {
    expand(list).map_err(|problem| {
        Error::new(ErrorKind::InvalidArgument, format!("host list '{list}': {problem}"))
            .with_hint("Slurm writes them as n[01-03,7]-ib,login; see 'scontrol show hostnames'")
    })
}

fn expand(list: &str) -> Result<Vec<String>, String> {
    let mut hosts = Vec::new();
    for name in split_names(list)? {
        if name.is_empty() {
            return Err("a name is empty".to_owned());
        }
        hosts.extend(expand_name(name)?);
        if hosts.len() > MOST {
            return Err(format!("more than {MOST} hosts"));
        }
    }
    Ok(hosts)
}

/// Cuts at the commas that stand outside of brackets.
fn split_names(list: &str) -> Result<Vec<&str>, String> {
    let mut names = Vec::new();
    let mut start = 0;
    let mut inside = false;
    for (at, character) in list.char_indices() {
        match (character, inside) {
            ('[', false) => inside = true,
            (']', true) => inside = false,
            ('[', true) => return Err(format!("a bracket inside another at byte {at}")),
            (']', false) => return Err(format!("nothing to close at byte {at}")),
            (',', false) => {
                names.push(&list[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    if inside {
        return Err("a bracket is not closed".to_owned());
    }
    names.push(&list[start..]);
    Ok(names)
}

/// All names that a name with brackets stands for.
fn expand_name(name: &str) -> Result<Vec<String>, String> {
    let mut hosts = vec![String::new()];
    let mut rest = name;
    while let Some((before, after)) = rest.split_once('[') {
        let (ranges, after) = after.split_once(']').ok_or("a bracket is not closed")?;
        let mut numbers = Vec::new();
        for range in ranges.split(',') {
            numbers.extend(expand_range(range)?);
        }
        if hosts.len().saturating_mul(numbers.len()) > MOST {
            return Err(format!("more than {MOST} hosts"));
        }
        hosts = hosts
            .iter()
            .flat_map(|host| numbers.iter().map(move |number| format!("{host}{before}{number}")))
            .collect();
        rest = after;
    }
    for host in &mut hosts {
        host.push_str(rest);
    }
    Ok(hosts)
}

/// `7`, `01-03`: the numbers, as wide as the first.
fn expand_range(range: &str) -> Result<Vec<String>, String> {
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    let number = |text: &str| -> Result<u64, String> {
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(format!("'{range}' is neither a number nor a range of numbers"));
        }
        text.parse().map_err(|_| format!("'{text}' is too large"))
    };
    let (from, to) = (number(first)?, number(last)?);
    if from > to {
        return Err(format!("the range '{range}' runs backwards"));
    }
    if to - from >= MOST as u64 {
        return Err(format!("more than {MOST} hosts"));
    }
    let width = first.len();
    Ok((from..=to).map(|number| format!("{number:0width$}")).collect())
}

/// No machine has more, and a mistake must not take all memory.
const MOST: usize = 65_536;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lists_of_the_field() {
        for (list, hosts) in [
            ("localhost", "localhost"),
            ("n1,n2", "n1 n2"),
            ("n[1-3]", "n1 n2 n3"),
            ("n[01-03,7]-ib", "n01-ib n02-ib n03-ib n7-ib"),
            ("n[098-101]", "n098 n099 n100 n101"),
            ("n[9-11]", "n9 n10 n11"),
            (
                "rack[1-2]node[08-09].cluster",
                "rack1node08.cluster rack1node09.cluster rack2node08.cluster rack2node09.cluster",
            ),
            ("gpu-a[1,3],cpu[5],login", "gpu-a1 gpu-a3 cpu5 login"),
            ("c[1-2][3-4]", "c13 c14 c23 c24"),
        ] {
            assert_eq!(parse_host_list(list).unwrap().join(" "), hosts, "{list}");
        }
    }

    #[test]
    fn what_is_no_list_is_said() {
        for (list, problem) in [
            ("", "a name is empty"),
            ("a,,b", "a name is empty"),
            ("n[1-3", "a bracket is not closed"),
            ("n1-3]", "nothing to close at byte 4"),
            ("n[1[2]]", "a bracket inside another at byte 3"),
            ("n[3-1]", "the range '3-1' runs backwards"),
            ("n[a-b]", "'a-b' is neither a number nor a range of numbers"),
            ("n[]", "'' is neither a number nor a range of numbers"),
            ("n[1-]", "'1-' is neither a number nor a range of numbers"),
            ("n[1--3]", "'1--3' is neither a number nor a range of numbers"),
            ("n[0-4294967295]", "more than 65536 hosts"),
            ("n[0-999][0-999]", "more than 65536 hosts"),
            ("n[99999999999999999999]", "'99999999999999999999' is too large"),
        ] {
            let error = parse_host_list(list).unwrap_err().to_string();
            assert!(error.starts_with(&format!("host list '{list}': {problem}")), "{error}");
        }
    }

    /// A name, or a part of one, as text, and what it stands for.
    type Name = (String, Vec<String>);

    fn names() -> impl Strategy<Value = Name> {
        let range = (0..200_u64, 0..5_u64, 1..4_usize).prop_map(|(from, more, width)| {
            let numbers = (from..=from + more).map(|number| format!("{number:0width$}")).collect();
            let text = match more {
                0 => format!("{from:0width$}"),
                _ => format!("{from:0width$}-{}", from + more),
            };
            (text, numbers)
        });
        let bracket =
            prop::collection::vec(range, 1..3).prop_map(|ranges: Vec<(_, Vec<String>)>| {
                let texts: Vec<String> =
                    ranges.iter().map(|(text, _): &(String, _)| text.clone()).collect();
                (
                    format!("[{}]", texts.join(",")),
                    ranges.into_iter().flat_map(|(_, numbers)| numbers).collect(),
                )
            });
        let plain = "[a-z][a-z0-9.-]{0,5}".prop_map(|text| (text.clone(), vec![text]));
        (plain, prop::collection::vec((bracket, "[a-z-]{0,3}"), 0..3)).prop_map(
            |((start, hosts), parts): (_, Vec<(Name, String)>)| {
                parts.into_iter().fold(
                    (start, hosts),
                    |(text, hosts), ((bracket, numbers), tail)| {
                        let hosts = hosts
                            .iter()
                            .flat_map(|host| numbers.iter().map(move |number| (host, number)))
                            .map(|(host, number)| format!("{host}{number}{tail}"))
                            .collect();
                        (format!("{text}{bracket}{tail}"), hosts)
                    },
                )
            },
        )
    }

    proptest! {
        #[test]
        fn lists_mean_what_they_were_made_from(names in prop::collection::vec(names(), 1..4)) {
            let list = names.iter().map(|(text, _)| text.as_str()).collect::<Vec<_>>().join(",");
            let hosts: Vec<_> = names.into_iter().flat_map(|(_, hosts)| hosts).collect();
            prop_assert_eq!(parse_host_list(&list).unwrap(), hosts);
        }

        #[test]
        fn no_text_does_harm(list in "[a-c0-9\\[\\],-]{0,24}|.{0,24}") {
            if let Ok(hosts) = parse_host_list(&list) {
                prop_assert!(hosts.len() <= MOST && hosts.iter().all(|host| !host.is_empty()));
            }
        }
    }
}
