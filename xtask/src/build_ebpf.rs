//! `build-ebpf`: from `mc-proxy-ebpf` to the committed objects, reproducibly.
//!
//! `mc-proxy/bpf/*.bpf.o` are what the daemon embeds, so that building mc-proxy needs neither LLVM nor an unstable
//! compiler. The file beside them records the hash of the sources and the toolchain: sources that were changed without a
//! rebuild are found anywhere, and the same toolchain must give the same bytes.

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The version that `setup` installs and the object is linked with.
pub(crate) const LINKER_VERSION: &str = "0.13.0";
/// The linker's LLVM: what a compiler with a newer one makes, it reads wrongly or not at all.
const LINKER_LLVM: u32 = 22;

const TARGET: &str = "bpfel-unknown-none";
/// What is built, and where it is committed.
const OBJECTS: [(&str, &str); 2] =
    [("mc-proxy", "mc-proxy/bpf/mc-proxy.bpf.o"), ("mc-proxy-splice", "mc-proxy/bpf/mc-proxy-splice.bpf.o")];
const SIDECAR: &str = "mc-proxy/bpf/mc-proxy.bpf.json";
const OBJECT_BYTES_MAX: usize = 200 * 1024;
/// What goes into the objects; files of the daemon's side and tests in these directories do not.
const SOURCES: [&str; 5] = [
    "mc-proxy-common/Cargo.toml",
    "mc-proxy-common/src",
    "mc-proxy-ebpf/Cargo.lock",
    "mc-proxy-ebpf/Cargo.toml",
    "mc-proxy-ebpf/src",
];
const NOT_SOURCES: [&str; 4] = ["src/user", "src/frames.rs", "src/packet/tests.rs", "src/verdict/tests.rs"];

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Change nothing; fail when the object is not what the sources give.
    #[arg(long)]
    check: bool,
    /// With --check: fail, too, when the recorded toolchain is not installed, so that the bytes cannot be compared.
    #[arg(long, env = "MC_PROXY_REQUIRE_EBPF_TOOLCHAIN", value_parser = clap::builder::FalseyValueParser::new())]
    require_toolchain: bool,
}

/// Where the objects came from.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Sidecar {
    /// SHA-256 over names and contents of the sources.
    sources: String,
    /// SHA-256 of each object.
    objects: BTreeMap<String, String>,
    rustc: String,
    llvm: String,
    linker: String,
}

/// A compiler that can build the standard library from source.
#[derive(Debug)]
pub(crate) struct Toolchain {
    cargo: PathBuf,
    rustc: PathBuf,
    sysroot: PathBuf,
    version: String,
    llvm: String,
    needs_bootstrap: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let root = root();
    let toolchains = toolchains();
    if args.check {
        return check(root, &toolchains, args.require_toolchain);
    }
    let Some(toolchain) = toolchains.first() else {
        bail!("no compiler with its library sources: run `cargo xtask setup`");
    };
    let linker = linker().context("no bpf-linker: run `cargo xtask setup`")?;
    println!("building with {} (LLVM {}) and {linker}", toolchain.version, toolchain.llvm);
    let objects = build(root, toolchain)?;
    let sidecar = Sidecar {
        sources: hash_sources(root)?,
        objects: objects.iter().map(|(path, object)| ((*path).to_owned(), hex(&Sha256::digest(object)))).collect(),
        rustc: toolchain.version.clone(),
        llvm: toolchain.llvm.clone(),
        linker,
    };
    for (path, object) in &objects {
        write(&root.join(path), object)?;
        println!("{path}: {} bytes", object.len());
    }
    write(&root.join(SIDECAR), format!("{}\n", serde_json::to_string_pretty(&sidecar)?).as_bytes())
}

fn check(root: &Path, toolchains: &[Toolchain], require_toolchain: bool) -> Result<()> {
    let remedy = "run `cargo xtask build-ebpf` and commit mc-proxy/bpf";
    let text = fs::read_to_string(root.join(SIDECAR)).with_context(|| format!("reading {SIDECAR}"))?;
    let recorded: Sidecar = serde_json::from_str(&text).with_context(|| format!("reading {SIDECAR}"))?;
    let mut committed = Vec::new();
    for (_, path) in OBJECTS {
        let object = fs::read(root.join(path)).with_context(|| format!("reading {path}"))?;
        let is_recorded = recorded.objects.get(path) == Some(&hex(&Sha256::digest(&object)));
        ensure!(is_recorded, "{path} is not the object of {SIDECAR}; {remedy}");
        committed.push(object);
    }
    ensure!(hash_sources(root)? == recorded.sources, "the kernel programs' sources have changed; {remedy}");

    let linker = linker();
    let same = toolchains.iter().find(|found| found.version == recorded.rustc && found.llvm == recorded.llvm);
    let Some(toolchain) = same.filter(|_| linker.as_ref() == Some(&recorded.linker)) else {
        let missing = format!(
            "{} (LLVM {}) with {} is not installed, so the objects were not rebuilt",
            recorded.rustc, recorded.llvm, recorded.linker
        );
        ensure!(!require_toolchain, "{missing}; run `cargo xtask setup`");
        println!("the objects match the hash of their sources; {missing}");
        return Ok(());
    };
    for ((path, rebuilt), committed) in build(root, toolchain)?.into_iter().zip(committed) {
        ensure!(
            rebuilt == committed,
            "the sources give another {path} ({} bytes, committed {}); {remedy}",
            rebuilt.len(),
            committed.len()
        );
        println!("{path} is, byte for byte, what its sources give with {}", toolchain.version);
    }
    Ok(())
}

/// Compilers with library sources that go with the linker: a nightly of rustup, then the distribution's.
pub(crate) fn toolchains() -> Vec<Toolchain> {
    let rustup = stdout(Command::new("rustup").args(["toolchain", "list"])).unwrap_or_default();
    let nightlies = rustup
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| name.starts_with("nightly"))
        .filter_map(|name| {
            let which = |tool| stdout(Command::new("rustup").args(["which", "--toolchain", name, tool]));
            Some((PathBuf::from(which("cargo")?.trim()), PathBuf::from(which("rustc")?.trim()), false))
        });
    let distribution = [(PathBuf::from("/usr/bin/cargo"), PathBuf::from("/usr/bin/rustc"), true)];
    nightlies
        .chain(distribution)
        .filter_map(|(cargo, rustc, bootstrap)| Toolchain::probe(cargo, rustc, bootstrap))
        .collect()
}

/// Name and version of the linker, if it is there.
pub(crate) fn linker() -> Option<String> {
    stdout(Command::new("bpf-linker").arg("--version")).map(|text| text.trim().to_owned())
}

impl Toolchain {
    fn probe(cargo: PathBuf, rustc: PathBuf, needs_bootstrap: bool) -> Option<Self> {
        if !cargo.exists() || !rustc.exists() {
            return None;
        }
        let sysroot = PathBuf::from(stdout(Command::new(&rustc).args(["--print", "sysroot"]))?.trim());
        if !sysroot.join("lib/rustlib/src/rust/library/core/src/lib.rs").exists() {
            return None;
        }
        let verbose = stdout(Command::new(&rustc).arg("-Vv"))?;
        let version = verbose.lines().next()?.to_owned();
        let llvm = verbose.lines().find_map(|line| line.strip_prefix("LLVM version: "))?.to_owned();
        if llvm.split('.').next()?.parse::<u32>().ok()? > LINKER_LLVM {
            return None;
        }
        Some(Self { cargo, rustc, sysroot, version, llvm, needs_bootstrap })
    }
}

/// The linked objects by path. Paths of this machine are mapped away, and flags of the environment do not reach the
/// compiler.
fn build(root: &Path, toolchain: &Toolchain) -> Result<Vec<(&'static str, Vec<u8>)>> {
    let directory = root.join("mc-proxy-ebpf");
    let target = directory.join("target");
    let cargo_home = env::var_os("CARGO_HOME").map(PathBuf::from).or_else(|| Some(env::home_dir()?.join(".cargo")));
    let mut flags = vec![
        "-Clinker=bpf-linker".to_owned(),
        // Without CAP_PERFMON the verifier also follows branches that are taken only in speculation, and a loop has no end there.
        "-Clink-arg=--unroll-loops".to_owned(),
        // Without CAP_PERFMON a spilled pointer must not be overwritten in part, as by a smaller value that is spilled to
        // the same place.
        "-Clink-arg=--llvm-args=-no-stack-slot-sharing".to_owned(),
        // Version 3 of the instruction set (Linux 5.12): 32-bit arithmetic and jumps.
        "-Ctarget-cpu=v3".to_owned(),
        // Only tracing programs depend on it; XDP programs are the same for every architecture.
        "--cfg=bpf_target_arch=\"x86_64\"".to_owned(),
        format!("--remap-path-prefix={}=/mc-proxy", root.display()),
        format!("--remap-path-prefix={}=/rust", toolchain.sysroot.display()),
    ];
    flags.extend(cargo_home.map(|home| format!("--remap-path-prefix={}=/cargo", home.display())));

    let mut command = Command::new(&toolchain.cargo);
    command
        .current_dir(&directory)
        .args(["build", "--release", "--locked", "-Z", "build-std=core", "--target", TARGET])
        .env("RUSTC", &toolchain.rustc)
        .env("CARGO_TARGET_DIR", &target)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
        .env_remove("RUSTUP_TOOLCHAIN")
        .env_remove("RUSTC_WRAPPER")
        .env_remove("RUSTC_WORKSPACE_WRAPPER");
    if toolchain.needs_bootstrap {
        command.env("RUSTC_BOOTSTRAP", "1");
    }
    let status = command.status().with_context(|| format!("running {}", toolchain.cargo.display()))?;
    ensure!(status.success(), "building mc-proxy-ebpf failed");
    let root = root.as_os_str().as_encoded_bytes();
    let linked = |(name, path)| {
        let built = target.join(TARGET).join("release").join(name);
        let object = fs::read(&built).with_context(|| format!("reading {}", built.display()))?;
        ensure!(object.len() < OBJECT_BYTES_MAX, "{path} has {} bytes, more than {OBJECT_BYTES_MAX}", object.len());
        ensure!(!object.windows(root.len()).any(|window| window == root), "{path} names a path of this machine");
        Ok((path, object))
    };
    OBJECTS.into_iter().map(linked).collect()
}

fn hash_sources(root: &Path) -> Result<String> {
    let mut files = Vec::new();
    for source in SOURCES {
        collect(&root.join(source), &mut files)?;
    }
    files.retain(|file| !NOT_SOURCES.iter().any(|other| file.starts_with(root.join("mc-proxy-common").join(other))));
    files.sort();
    let mut hash = Sha256::new();
    for file in files {
        let name = file.strip_prefix(root)?.to_str().context("a source has a name that is not UTF-8")?;
        let bytes = fs::read(&file).with_context(|| format!("reading {}", file.display()))?;
        hash.update(format!("{name}\0{}\0", bytes.len()));
        hash.update(bytes);
    }
    Ok(hex(&hash.finalize()))
}

fn collect(path: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    if !path.is_dir() {
        files.push(path.to_owned());
        return Ok(());
    }
    for entry in fs::read_dir(path).with_context(|| format!("reading {}", path.display()))? {
        collect(&entry?.path(), files)?;
    }
    Ok(())
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let context = || format!("writing {}", path.display());
    fs::create_dir_all(path.parent().expect("a path below the root")).with_context(context)?;
    fs::write(path, bytes).with_context(context)
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is a directory of the repository")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What a program prints, if it runs and succeeds.
fn stdout(command: &mut Command) -> Option<String> {
    let output = command.output().ok()?;
    if output.status.success() { String::from_utf8(output.stdout).ok() } else { None }
}
