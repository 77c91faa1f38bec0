//! What a library's file says of itself, read without opening it as a library.
//!
//! A machine often has several copies of NCCL, and to load one only to ask its version runs its
//! code: a copy that is broken takes the process with it, and a copy that isn't keeps a place in
//! it for ever. But the answers lie in the file. The release stands in a line that the library
//! prints (`NCCL version 2.28.9+cuda12.9`, `RCCL version 2.27.7 compiled with ROCm "7.2.4.0…"`), the
//! functions in the table of dynamic symbols, and the
//! names of the variables that it reads among the constants. Only headers and those three sections
//! are read; the files are hundreds of megabytes.

use std::collections::BTreeSet;
use std::ffi::c_int;
use std::fs::File;
use std::path::Path;

use object::endian::Endianness;
use object::read::elf::ElfFile64;
use object::read::{Object, ObjectSection, ObjectSymbol, ReadCache};

use crate::elf;
use crate::error::{MissingSymbols, Refusal};
use crate::table::{Symbol, Table};

/// What the file of a library of this ABI says of itself.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct FileInfo {
    /// The release's code, as `ncclGetVersion` would tell it. `None` where no line tells it, as in
    /// a stand-in.
    pub version: Option<c_int>,
    /// Major and minor version of the CUDA or HIP that it was built with.
    pub toolkit: Option<(u32, u32)>,
    /// The required functions that it lacks.
    pub missing: Option<MissingSymbols>,
    /// The environment variables that it reads: every constant that looks like one of NCCL's. A few
    /// are no variables.
    pub variables: BTreeSet<String>,
}

/// Reads what the file says of itself. Loads nothing and runs nothing.
///
/// # Errors
///
/// What keeps the dynamic loader from taking it, short of what only the loader can find; see
/// [`Refusal`].
pub fn inspect(path: &Path) -> Result<FileInfo, Refusal> {
    elf::check(path)?;
    let data = ReadCache::new(File::open(path).map_err(Refusal::Unreadable)?);
    let malformed = |_| Refusal::NotALibrary(": its sections are malformed");
    let file = ElfFile64::<Endianness, _>::parse(&data).map_err(malformed)?;
    let exported: BTreeSet<&[u8]> = file
        .dynamic_symbols()
        .filter(|symbol| symbol.is_definition())
        .filter_map(|symbol| symbol.name_bytes().ok())
        .collect();
    let lacks = |symbol: &&Symbol| {
        symbol.is_required()
            && !symbol.names().iter().any(|name| exported.contains(name.to_bytes()))
    };
    let missing: Vec<&'static Symbol> = Table::SYMBOLS.iter().filter(lacks).collect();
    let constants = file.section_by_name(".rodata").and_then(|section| section.data().ok());
    let (version, toolkit, variables) = read_constants(constants.unwrap_or_default());
    let missing = (!missing.is_empty()).then_some(MissingSymbols(missing));
    Ok(FileInfo { version, toolkit, missing, variables })
}

type Constants = (Option<c_int>, Option<(u32, u32)>, BTreeSet<String>);

/// Finds the release, the toolkit and the variables among a library's constants.
fn read_constants(data: &[u8]) -> Constants {
    let mut constants = Constants::default();
    for text in data.split(|&byte| byte == 0).filter_map(|text| std::str::from_utf8(text).ok()) {
        if let Some((version, toolkit)) = release(text) {
            constants.0 = Some(version);
            constants.1 = toolkit.or(constants.1);
        } else if is_variable(text) {
            constants.2.insert(text.to_owned());
        }
    }
    constants
}

/// `NCCL version 2.28.9+cuda12.9` is 22809 and (12, 9). RCCL has its own name and `+hip`; later
/// releases write it only when asked for their version, and then name ROCm.
fn release(text: &str) -> Option<(c_int, Option<(u32, u32)>)> {
    let rest =
        ["NCCL version ", "RCCL version "].iter().find_map(|start| text.strip_prefix(start))?;
    let (version, build) =
        rest.split_once('+').or_else(|| rest.split_once(" compiled with ROCm \""))?;
    let numbers: Option<Vec<c_int>> = version.split('.').map(|part| part.parse().ok()).collect();
    let &[major, minor, patch] = numbers?.as_slice() else { return None };
    // Codes have two digits for the patch, and three for the minor number since 2.9.
    if !(1..=9).contains(&major) || !(0..=99).contains(&minor) || !(0..=99).contains(&patch) {
        return None;
    }
    let unit = if (major, minor) < (2, 9) { 1000 } else { 10_000 };
    Some((major * unit + minor * 100 + patch, toolkit(build)))
}

fn toolkit(build: &str) -> Option<(u32, u32)> {
    let version = ["cuda", "hip"].iter().find_map(|name| build.strip_prefix(name));
    let version = version.unwrap_or(build);
    let mut numbers = version.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn is_variable(text: &str) -> bool {
    let rest = text.strip_prefix("NCCL_").or_else(|| text.strip_prefix("RCCL_"));
    let ordinary = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_';
    rest.is_some_and(|rest| !rest.is_empty() && rest.bytes().all(ordinary))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_release_and_its_toolkit_are_read_from_the_line_that_libraries_print() {
        for (text, want) in [
            ("NCCL version 2.28.9+cuda12.9", Some((22_809, Some((12, 9))))),
            ("NCCL version 2.32.3+cuda13.0", Some((23_203, Some((13, 0))))),
            ("NCCL version 2.8.4+cuda11.2", Some((2804, Some((11, 2))))),
            ("RCCL version 2.13.4+hip5.4 HEAD:1234", Some((21_304, Some((5, 4))))),
            (
                "RCCL version 2.27.7 compiled with ROCm \"7.2.4.0-9999\"",
                Some((22_707, Some((7, 2)))),
            ),
            ("NCCL version 2.27.3+source", Some((22_703, None))),
            ("NCCL version 2.25.1 compiled with CUDA 12.2", None),
            ("NCCL version information", None),
            ("NCCL version 2.999.1+cuda12.9", None),
            ("Mismatched NCCL version detected", None),
        ] {
            assert_eq!(release(text), want, "{text}");
        }
    }

    #[test]
    fn variables_are_told_from_other_constants() {
        let (version, toolkit, variables) = read_constants(
            b"NCCL_DEBUG\0NCCL WARN\0NCCL_\0xNCCL_ALGO\0NCCL_IB_HCA=\0\xff\xfe\0NCCL_P2P_LEVEL\0\
              NCCL version 2.20.5+cuda12.4\0",
        );
        assert_eq!((version, toolkit), (Some(22_005), Some((12, 4))));
        assert_eq!(Vec::from_iter(variables), ["NCCL_DEBUG", "NCCL_P2P_LEVEL"]);
    }
}
