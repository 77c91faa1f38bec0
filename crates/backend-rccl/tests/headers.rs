//! What this workspace declares of RCCL and of the HIP runtime, against the vendor's own C headers.
//!
//! `scripts/real-libraries` downloads the headers of several releases and runs this. A C program is
//! written for each of them, compiled with the system's compiler and run. It
//!
//! * asserts that each function has the type that our table gives it;
//! * prints each constant, size and offset, to be compared with ours.
//!
//! What an older header lacks is pinned too: no declaration of ours goes without a witness.

use std::{
    collections::BTreeSet,
    ffi::c_int,
    fmt::Write,
    fs,
    mem::offset_of,
    path::Path,
    process::{Command, Output},
};

use collectives_backend_rccl::hip::{
    self,
    types::{
        HIP_EVENT_DISABLE_TIMING, HIP_STREAM_NON_BLOCKING, PROPERTIES_ARCHITECTURE_SIZE,
        PROPERTIES_R0000_ARCHITECTURE, PROPERTIES_R0000_SIZE, PROPERTIES_R0600_ARCHITECTURE,
        PROPERTIES_R0600_SIZE, hipDevice_t, hipDeviceAttribute_t, hipError_t, hipEvent_t,
        hipGraph_t, hipGraphExec_t, hipGraphNode_t, hipMemcpyKind, hipPointerAttribute_t,
        hipStream_t, hipStreamCaptureMode, hipStreamCaptureStatus,
    },
};
use collectives_foreign::{Tree, same};
use collectives_nccl_abi::{
    Flavour, Table,
    config::NCCL_CONFIG_UNDEF_INT,
    ncclComm_t, ncclConfig_t, ncclDataType_t, ncclRedOp_t, ncclResult_t, ncclScalarResidence_t,
    ncclSimInfo_t, ncclUniqueId, ncclWindow_t,
    types::{
        NCCL_CTA_POLICY_DEFAULT, NCCL_CTA_POLICY_EFFICIENCY, NCCL_SHRINK_ABORT,
        NCCL_SHRINK_DEFAULT, NCCL_SPLIT_NOCOLOR, NCCL_WIN_COLL_SYMMETRIC, NCCL_WIN_DEFAULT,
    },
};
use libtest_mimic::{Arguments, Failed, Trial};

/// The headers of one release, in a tree of `scripts/fetch-rocm`.
#[derive(Clone, Copy)]
struct Headers {
    tree: &'static str,
    /// Major version of its HIP.
    hip: u32,
    /// Version code of its RCCL; `None` if there is only HIP.
    rccl: Option<c_int>,
    /// Which of our names the headers lack, apart from those of functions of RCCL.
    absent: &'static [&'static str],
}

const HEADERS: [Headers; 4] = [
    Headers {
        tree: "hip-5.2.3",
        hip: 5,
        rccl: None,
        absent: &[
            "hipErrorInvalidChannelDescriptor",
            "hipErrorInvalidTexture",
            "hipErrorInvalidResourceType",
            "hipErrorInvalidResourceConfiguration",
            "hipErrorStreamDetached",
            "hipGraphUpload",
            "hipStreamGetDevice",
        ],
    },
    Headers {
        tree: "rccl-2.13.4",
        hip: 5,
        rccl: Some(21_304),
        absent: &[
            "hipErrorInvalidChannelDescriptor",
            "hipErrorInvalidTexture",
            "hipErrorInvalidResourceType",
            "hipErrorInvalidResourceConfiguration",
            "hipErrorStreamDetached",
            "ncclInProgress",
            "ncclTimeout",
            "ncclFloat8e4m3",
            "ncclFloat8e5m2",
        ],
    },
    Headers {
        tree: "hip-6.4.3",
        hip: 6,
        rccl: None,
        absent: &[
            "hipErrorInvalidResourceType",
            "hipErrorInvalidResourceConfiguration",
            "hipErrorStreamDetached",
        ],
    },
    Headers {
        tree: "rccl-2.27.7",
        hip: 7,
        rccl: Some(22_707),
        absent: &[
            "hipErrorInvalidResourceType",
            "hipErrorInvalidResourceConfiguration",
            "hipErrorStreamDetached",
            "ncclTimeout",
        ],
    },
];

fn main() {
    let compiler = Command::new("cc").arg("--version").output().is_ok();
    let tree = |headers: &Headers| match compiler {
        true => Tree::find(headers.tree),
        false => Err("needs a C compiler".to_owned()),
    };
    let trials = HEADERS.map(|headers| match tree(&headers) {
        Ok(tree) => Trial::test(format!("[{}] declarations_are_the_header_s", headers.tree), {
            move || compare(&headers, &tree.headers())
        }),
        Err(reason) => {
            let title = format!("[{}] [{reason}] declarations_are_the_header_s", headers.tree);
            Trial::test(title, move || Err(reason.into())).with_ignored_flag(true)
        }
    });
    libtest_mimic::run(&Arguments::from_args(), trials.into()).exit();
}

fn compare(headers: &Headers, folder: &Path) -> Result<(), Failed> {
    let mut start = "#include <stddef.h>\n#include <stdint.h>\n#include <stdio.h>\n\
                     #include <hip/hip_runtime_api.h>\n"
        .to_owned();
    let mut values = hip_values(headers.hip);
    if let Some(version) = headers.rccl {
        start += "#include <rccl/rccl.h>\n";
        values.extend(rccl_values(version));
    }
    let compiler = Compiler { folder, work: tempfile::tempdir()? };
    let words = compiler.words(&start)?;
    let declared = |text: &str| identifiers(text).all(|word| words.contains(word));

    let (values, absent_values): (Vec<_>, Vec<_>) =
        values.into_iter().partition(|(expression, _)| declared(expression));
    let (mut functions, absent_functions): (Vec<_>, Vec<_>) =
        hip_functions().partition(|(name, _)| declared(name));
    let absent: Vec<_> = absent_values
        .iter()
        .map(|(expression, _)| expression.as_str())
        .chain(absent_functions.iter().map(|(name, _)| *name))
        .collect();
    same("names that the headers lack", absent.as_slice(), headers.absent)?;
    if let Some(version) = headers.rccl {
        functions.extend(rccl_functions(version, declared)?);
    }

    let mut program = start;
    for (name, signature) in functions {
        writeln!(program, "{}", c_assertion(name, signature)?)?;
    }
    program += "int main(void) {\n";
    for (expression, _) in &values {
        writeln!(program, "    printf(\"%lld\\n\", (long long)({expression}));")?;
    }
    program += "}\n";

    let output = compiler.run(&program)?;
    let printed: Vec<&str> = output.lines().collect();
    same("lines", printed.len(), values.len())?;
    for ((expression, ours), theirs) in values.iter().zip(printed) {
        same(expression, ours.to_string().as_str(), theirs)?;
    }
    Ok(())
}

/// C expressions, and what they are to us.
type Values = Vec<(String, i64)>;

/// The values of an enum that is an open set here, and its size.
macro_rules! named {
    ($values:ident, $($type:ident),* $(,)?) => { $(
        $values.extend($type::NAMED.iter().filter_map(|value| {
            Some((value.name()?.to_owned(), i64::from(value.0)))
        }));
        $values.push((format!("sizeof({})", stringify!($type)), size_of::<$type>() as i64));
    )* };
}

/// The sizes of types that are called the same in C.
macro_rules! sizes {
    ($values:ident, $($type:ident),* $(,)?) => { $(
        $values.push((format!("sizeof({})", stringify!($type)), size_of::<$type>() as i64));
    )* };
}

/// The offsets of fields that are called the same in C.
macro_rules! offsets {
    ($values:ident, $type:ident: $($field:ident),* $(,)?) => { $(
        $values.push((
            format!("offsetof({}, {})", stringify!($type), stringify!($field)),
            offset_of!($type, $field) as i64,
        ));
    )* };
}

fn hip_values(major: u32) -> Values {
    let mut values = Values::new();
    named!(values, hipError_t, hipDeviceAttribute_t, hipMemcpyKind);
    named!(values, hipStreamCaptureMode, hipStreamCaptureStatus);
    sizes!(values, hipDevice_t, hipStream_t, hipEvent_t, hipGraph_t, hipGraphExec_t);
    sizes!(values, hipGraphNode_t, hipPointerAttribute_t);
    let kind = if major < 6 { "memoryType" } else { "type" };
    let (properties, architecture) = match major {
        ..6 => (PROPERTIES_R0000_SIZE, PROPERTIES_R0000_ARCHITECTURE),
        _ => (PROPERTIES_R0600_SIZE, PROPERTIES_R0600_ARCHITECTURE),
    };
    let field = |name| format!("offsetof(hipPointerAttribute_t, {name})");
    values.extend([
        (field(kind), offset_of!(hipPointerAttribute_t, kind) as i64),
        (field("device"), offset_of!(hipPointerAttribute_t, device) as i64),
        (field("devicePointer"), offset_of!(hipPointerAttribute_t, device_pointer) as i64),
        (field("hostPointer"), offset_of!(hipPointerAttribute_t, host_pointer) as i64),
        (field("isManaged"), offset_of!(hipPointerAttribute_t, is_managed) as i64),
        (field("allocationFlags"), offset_of!(hipPointerAttribute_t, flags) as i64),
        ("hipStreamNonBlocking".to_owned(), i64::from(HIP_STREAM_NON_BLOCKING)),
        ("hipEventDisableTiming".to_owned(), i64::from(HIP_EVENT_DISABLE_TIMING)),
        ("sizeof(hipDeviceProp_t)".to_owned(), properties as i64),
        ("offsetof(hipDeviceProp_t, gcnArchName)".to_owned(), architecture as i64),
        (
            "sizeof(((hipDeviceProp_t *)0)->gcnArchName)".to_owned(),
            PROPERTIES_ARCHITECTURE_SIZE as i64,
        ),
    ]);
    values
}

fn rccl_values(version: c_int) -> Values {
    let mut values = Values::new();
    named!(values, ncclResult_t, ncclDataType_t, ncclRedOp_t, ncclScalarResidence_t);
    sizes!(values, ncclComm_t, ncclUniqueId);
    let constant = |(name, value): (&str, c_int)| (name.to_owned(), i64::from(value));
    values.extend(
        [
            ("NCCL_VERSION_CODE", version),
            ("NCCL_UNIQUE_ID_BYTES", size_of::<ncclUniqueId>() as c_int),
        ]
        .map(constant),
    );
    // Before that there was no configuration, and nothing to be configured.
    if version >= 22_707 {
        sizes!(values, ncclWindow_t, ncclSimInfo_t);
        offsets!(values, ncclSimInfo_t: size, magic, version, estimatedTime);
        // Its size is not compared: ours is that of a newer release, which libraries can read.
        offsets!(
            values,
            ncclConfig_t: size, magic, version, blocking, cgaClusterSize, minCTAs, maxCTAs,
            netName, splitShare, trafficClass, commName, collnetEnable, CTAPolicy, shrinkShare,
            nvlsCTAs,
        );
        values.extend(
            [
                ("NCCL_CONFIG_UNDEF_INT", NCCL_CONFIG_UNDEF_INT),
                ("NCCL_SPLIT_NOCOLOR", NCCL_SPLIT_NOCOLOR),
                ("NCCL_WIN_DEFAULT", NCCL_WIN_DEFAULT),
                ("NCCL_WIN_COLL_SYMMETRIC", NCCL_WIN_COLL_SYMMETRIC),
                ("NCCL_CTA_POLICY_DEFAULT", NCCL_CTA_POLICY_DEFAULT),
                ("NCCL_CTA_POLICY_EFFICIENCY", NCCL_CTA_POLICY_EFFICIENCY),
                ("NCCL_SHRINK_DEFAULT", NCCL_SHRINK_DEFAULT),
                ("NCCL_SHRINK_ABORT", NCCL_SHRINK_ABORT),
            ]
            .map(constant),
        );
        let config = |field| format!("((ncclConfig_t)NCCL_CONFIG_INITIALIZER).{field}");
        let info = |field| format!("((ncclSimInfo_t)NCCL_SIM_INFO_INITIALIZER).{field}");
        let (ours, simulation) = (ncclConfig_t::undefined(), ncclSimInfo_t::undefined());
        values.extend([
            (config("magic"), i64::from(ours.magic)),
            (config("blocking"), i64::from(ours.blocking)),
            (config("splitShare"), i64::from(ours.splitShare)),
            (config("nvlsCTAs"), i64::from(ours.nvlsCTAs)),
            (info("magic"), i64::from(simulation.magic)),
            (info("estimatedTime"), simulation.estimatedTime as i64),
        ]);
    }
    values
}

/// A C function, and its type as Rust writes it.
type Function = (&'static str, &'static str);

fn hip_functions() -> impl Iterator<Item = Function> {
    // Two of them fill a struct that has no declaration here, behind a `void *`.
    hip::Table::SIGNATURES
        .iter()
        .copied()
        .filter(|(name, _)| !name.starts_with("hipGetDeviceProperties"))
}

/// The functions of our table that are declared, which must be those that this release is said to
/// have.
fn rccl_functions(
    version: c_int,
    declared: impl Fn(&str) -> bool,
) -> Result<Vec<Function>, Failed> {
    let mut functions = Vec::new();
    for symbol in Table::SYMBOLS {
        let mut names = symbol.names().iter().filter_map(|name| name.to_str().ok());
        let found = names.find(|name| declared(name));
        let due = symbol.since(Flavour::Rccl).is_some_and(|since| since <= version);
        same(&format!("{} is declared", symbol.name()), found.is_some(), due)?;
        functions.extend(found.map(|name| (name, symbol.signature())));
    }
    Ok(functions)
}

/// A line of C that compiles if `fn(*mut *mut c_void, usize) -> hipError_t` is the type of
/// `hipMalloc`: if that is compatible with `hipError_t(void * *, size_t)`.
fn c_assertion(name: &str, signature: &str) -> Result<String, Failed> {
    let signature: String = signature.split_whitespace().collect();
    let (arguments, result) = signature
        .strip_prefix("fn(")
        .and_then(|rest| rest.rsplit_once(')'))
        .ok_or_else(|| format!("{name}: {signature} is no signature"))?;
    let arguments: Vec<_> =
        arguments.split(',').filter(|argument| !argument.is_empty()).map(c_type).collect();
    let arguments = if arguments.is_empty() { "void".to_owned() } else { arguments.join(", ") };
    let result = result.strip_prefix("->").map_or_else(|| "void".to_owned(), c_type);
    Ok(format!(
        "_Static_assert(__builtin_types_compatible_p(__typeof__({name}), {result}({arguments})), \
         \"{name}\");"
    ))
}

/// The C type behind a Rust type without spaces: `*constc_void` is `void const *`.
fn c_type(rust: &str) -> String {
    if let Some(target) = rust.strip_prefix("*mut") {
        return format!("{} *", c_type(target));
    }
    if let Some(target) = rust.strip_prefix("*const") {
        return format!("{} const *", c_type(target));
    }
    match rust {
        "c_char" => "char",
        "c_int" => "int",
        "c_uint" => "unsigned int",
        "c_void" => "void",
        "cudaStream_t" => "hipStream_t",
        "usize" => "size_t",
        "u64" => "uint64_t",
        same_in_c => same_in_c,
    }
    .to_owned()
}

/// The words of a C text.
fn identifiers(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_alphanumeric() && c != '_')
        .filter(|word| word.starts_with(|c: char| c.is_alphabetic() || c == '_'))
}

/// The system's C compiler, with the headers of one release.
struct Compiler<'a> {
    folder: &'a Path,
    work: tempfile::TempDir,
}

impl Compiler<'_> {
    /// Every word that a program with this start may use: of the headers, of their macros, of C.
    fn words(&self, start: &str) -> Result<BTreeSet<String>, Failed> {
        let text = succeed(self.cc(start)?.args(["-E", "-dD"]))?;
        let of_c = ["sizeof", "offsetof"].map(str::to_owned);
        Ok(identifiers(&text).map(str::to_owned).chain(of_c).collect())
    }

    /// Compiles a program, runs it and tells what it prints.
    fn run(&self, program: &str) -> Result<String, Failed> {
        let binary = self.work.path().join("headers");
        succeed(self.cc(program)?.args(["-o"]).arg(&binary))?;
        succeed(&mut Command::new(binary))
    }

    fn cc(&self, program: &str) -> Result<Command, Failed> {
        let source = self.work.path().join("headers.c");
        fs::write(&source, program)?;
        let mut cc = Command::new("cc");
        cc.args(["-std=gnu11", "-D__HIP_PLATFORM_AMD__", "-isystem"]);
        cc.arg(self.folder).arg(source);
        Ok(cc)
    }
}

/// What a program prints, if it succeeds.
fn succeed(command: &mut Command) -> Result<String, Failed> {
    let Output { status, stdout, stderr } = command.output()?;
    if status.success() {
        return Ok(String::from_utf8(stdout)?);
    }
    Err(format!("{command:?}: {status}\n{}", String::from_utf8_lossy(&stderr)).into())
}
