//! `cargo xtask test kernels`: the datapath's tests on kernels that this machine does not run.
//!
//! Debian's kernels, each booted by QEMU from an initial RAM disk that holds the tests, the kernel's modules and
//! busybox, with nothing of this machine in reach. The processor is emulated (TCG), so that it works inside of
//! virtual machines too; that makes a test ten times as slow, and only those are asked for that do not measure time.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::apt::{self, Suite};
use crate::{cargo, layout, process, setup};

/// The emulator of this machine's architecture, if its kernels are known here.
pub const QEMU: Option<&str> = if cfg!(target_arch = "x86_64") {
    Some("qemu-system-x86_64")
} else {
    None
};
/// Releases of Debian, with kernels 6.1 and 6.12.
const SUITES: [&str; 2] = ["bookworm", "trixie"];
/// Depends on the newest kernel of a suite: the variant for virtual machines, a quarter of the size.
const NEWEST_KERNEL: &str = "linux-image-cloud-amd64";
/// Programs on packets that were built, and the verifier's counts.
const TESTS: [&str; 1] = ["frames::"];
/// What a network namespace, its interfaces and sockets need of a kernel's modules.
const MODULES: [&str; 5] = ["net", "drivers/net", "lib", "crypto", "arch"];
const APPLETS: [&str; 9] = [
    "sh", "mount", "mkdir", "modprobe", "uname", "xargs", "sysctl", "cat", "poweroff",
];
/// What the tests set up their namespaces with.
const TOOLS: [&str; 3] = ["ip", "tc", "nstat"];
/// Seconds that one kernel may take, and the memory of its machine.
const LIMIT: &str = "900";
const MEMORY: &str = "4G";
/// What `init.sh` says last.
const VERDICT: &str = "tests ended with ";

/// A kernel that was downloaded and unpacked.
struct Kernel {
    release: String,
    folder: PathBuf,
}

/// Runs the tests that `arguments` select on the kernels of `suites`; without either, what CI runs.
pub fn test(suites: &[String], arguments: &[String]) -> Result<()> {
    println!("test: kernels");
    let Some(qemu) = QEMU.and_then(process::find_program) else {
        bail!("no QEMU for this machine's architecture: run `cargo xtask setup` (x86-64 only)");
    };
    let program = test_program()?;
    let suites: Vec<&str> = match suites {
        [] => SUITES.to_vec(),
        chosen => chosen.iter().map(String::as_str).collect(),
    };
    let arguments: Vec<&str> = match arguments {
        [] => TESTS.to_vec(),
        chosen => chosen.iter().map(String::as_str).collect(),
    };
    let mut failed = Vec::new();
    for suite in suites {
        let outcome = kernel(suite).and_then(|kernel| run_on(&qemu, &kernel, &program, &arguments));
        if let Err(error) = outcome {
            eprintln!("{suite}: {error:#}");
            failed.push(suite);
        }
    }
    if !failed.is_empty() {
        bail!("the datapath fails on the kernels of {}", failed.join(", "));
    }
    Ok(())
}

/// The test program of the datapath, built but not run.
fn test_program() -> Result<PathBuf> {
    let mut build = cargo::workspace("test --no-run --test datapath --message-format=json");
    let messages = process::output(&mut build)?;
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["name"] == "datapath")
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .context("cargo names no test program `datapath`")
}

/// The newest kernel of a suite: of an earlier run, or downloaded.
fn kernel(suite: &str) -> Result<Kernel> {
    let folder = layout::dot_windlass().join("kernels").join(suite);
    if let Some(release) = release(&folder) {
        return Ok(Kernel { release, folder });
    }
    // Complete once it has its name.
    let partial = folder.with_extension("partial");
    fs::remove_dir_all(&partial).ok();
    let packages = partial.join("packages");
    fs::create_dir_all(&packages).with_context(|| format!("creating {}", packages.display()))?;
    let apt = Suite::open(&packages.join("apt"), &apt::debian_archive()?, suite)?;
    let image = depends(&apt, NEWEST_KERNEL)?
        .into_iter()
        .find(|name| name.starts_with("linux-image-"))
        .with_context(|| format!("{NEWEST_KERNEL} of {suite} depends on no kernel"))?;
    println!("  downloading {image} from {suite}");
    // Newer ones are split.
    let mut names = depends(&apt, &image)?;
    names.retain(|name| name.starts_with("linux-binary-") || name.starts_with("linux-modules-"));
    names.push(image);
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    apt.download(&packages, &names)?;
    for entry in fs::read_dir(&packages)? {
        let package = entry?.path();
        if package.extension().is_some_and(|end| end == "deb") {
            process::run(Command::new("dpkg").arg("-x").args([&package, &partial]))?;
        }
    }
    fs::remove_dir_all(&packages)?;
    fs::rename(&partial, &folder)?;
    let release = release(&folder).with_context(|| format!("no kernel in {}", folder.display()))?;
    Ok(Kernel { release, folder })
}

fn depends(apt: &Suite, package: &str) -> Result<Vec<String>> {
    let listed = process::output(apt.cache().args(["depends", package]))?;
    let names = listed
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "));
    Ok(names.map(str::to_owned).collect())
}

/// The release of the kernel that was unpacked into a folder.
fn release(folder: &Path) -> Option<String> {
    let modules = fs::read_dir(modules(folder)?).ok()?;
    modules
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .next()
}

/// `lib/modules`, which lies in `usr` since trixie.
fn modules(folder: &Path) -> Option<PathBuf> {
    let places = ["lib/modules", "usr/lib/modules"].map(|place| folder.join(place));
    places.into_iter().find(|place| place.is_dir())
}

impl Kernel {
    fn image(&self) -> Result<PathBuf> {
        let modules = modules(&self.folder).unwrap_or_default();
        let beside = modules.join(&self.release).join("vmlinuz");
        let places = [
            self.folder.join(format!("boot/vmlinuz-{}", self.release)),
            beside,
        ];
        let mut places = places.into_iter();
        places
            .find(|place| place.is_file())
            .with_context(|| format!("no vmlinuz in {}", self.folder.display()))
    }
}

/// Runs the tests on one kernel. The emulator has faults of its own: a machine that ends without a verdict is booted
/// once more.
fn run_on(qemu: &Path, kernel: &Kernel, program: &Path, arguments: &[&str]) -> Result<()> {
    println!("test: kernels: {}", kernel.release);
    let disk = kernel.folder.join("initramfs");
    pack(kernel, program, arguments, &disk)?;
    for _ in 0..2 {
        match boot(qemu, kernel, &disk)?.as_deref() {
            Some("0") => return Ok(()),
            Some(status) => bail!("the tests ended with {status}"),
            None => println!("  the machine ended before the tests did"),
        }
    }
    bail!("the machine ended twice before the tests did ({LIMIT} s are allowed)")
}

/// Boots one kernel, with its console on the screen, and returns what the tests ended with, if they did.
fn boot(qemu: &Path, kernel: &Kernel, disk: &Path) -> Result<Option<String>> {
    let mut machine = Command::new("timeout");
    machine
        .args(["--signal=KILL", LIMIT])
        .arg(qemu)
        // Without CMPXCHG16B, at which a kernel of 6.12 once ended in a double fault, its flags being no flags.
        .args(["-accel", "tcg,thread=multi", "-cpu", "max,-cx16"])
        .args(["-smp", "2"])
        .args(["-m", MEMORY, "-nodefaults", "-nographic", "-no-reboot"])
        .args(["-serial", "stdio"])
        .arg("-kernel")
        .arg(kernel.image()?)
        .arg("-initrd")
        .arg(disk)
        .args(["-append", "console=ttyS0 panic=-1 quiet mitigations=off"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let mut running = machine.spawn().context("could not start QEMU")?;
    let console = running.stdout.take().context("QEMU has a console")?;
    let mut verdict = None;
    for line in BufReader::new(console).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).trim_end().to_owned();
        println!("  {line}");
        // The kernel may have begun the line.
        let said = line.split_once(VERDICT);
        verdict = verdict.or_else(|| said.map(|(_, status)| status.to_owned()));
    }
    running.wait()?;
    Ok(verdict)
}

/// Writes the initial RAM disk: an archive of the `newc` format of cpio, which busybox knows to write.
fn pack(kernel: &Kernel, program: &Path, arguments: &[&str], disk: &Path) -> Result<()> {
    let busybox = setup::static_busybox().context("no static busybox: run `cargo xtask setup`")?;
    let root = disk.with_extension("root");
    fs::remove_dir_all(&root).ok();
    for folder in ["bin", "sbin", "proc", "sys", "dev", "tmp", "run"] {
        fs::create_dir_all(root.join(folder))?;
    }
    fs::copy(&busybox, root.join("bin/busybox"))?;
    for applet in APPLETS {
        symlink("busybox", root.join("bin").join(applet))?;
    }
    // Where the kernel looks for it.
    symlink("../bin/busybox", root.join("sbin/modprobe"))?;
    install(&root, program, "test")?;
    for tool in TOOLS {
        let path = process::find_program(tool)
            .with_context(|| format!("no `{tool}`: run `cargo xtask setup`"))?;
        install(&root, &path, &format!("bin/{tool}"))?;
    }
    fs::write(root.join("arguments"), arguments.join("\n"))?;
    let init = root.join("init");
    fs::write(&init, include_str!("kernels/init.sh"))?;
    process::run(Command::new("chmod").arg("+x").arg(&init))?;

    let to = root
        .join("lib/modules")
        .join(&kernel.release)
        .join("kernel");
    fs::create_dir_all(&to)?;
    let from = modules(&kernel.folder).context("the kernel has modules")?;
    let from = from.join(&kernel.release).join("kernel");
    for part in MODULES {
        let mut copy = Command::new("cp");
        copy.current_dir(&from).args(["-r", "--parents", part]);
        process::run(copy.arg(&to))?;
    }
    // Newer packages compress them, which busybox does not see through when it loads them.
    let mut unpack = Command::new("find");
    unpack.arg(&to).args(["-name", "*.ko.xz", "-exec"]);
    process::run(unpack.arg(&busybox).args(["unxz", "{}", "+"]))?;
    let mut depmod = Command::new(&busybox);
    process::output(
        depmod
            .args(["depmod", "-b"])
            .arg(&root)
            .arg(&kernel.release),
    )?;

    let list = process::output(Command::new("find").arg(".").current_dir(&root))?;
    let mut archive = Command::new(&busybox)
        .args(["cpio", "-o", "-H", "newc"])
        .current_dir(&root)
        .stdin(Stdio::piped())
        .stdout(fs::File::create(disk)?)
        .stderr(Stdio::null())
        .spawn()?;
    let mut names = archive.stdin.take().context("cpio reads names")?;
    names.write_all(list.as_bytes())?;
    drop(names);
    let written = archive.wait()?;
    fs::remove_dir_all(&root)?;
    match written.success() {
        true => Ok(()),
        false => bail!("could not write {}: {written}", disk.display()),
    }
}

/// Copies a program to a place below another root, and what it is loaded with to where it lies here.
fn install(root: &Path, program: &Path, place: &str) -> Result<()> {
    fs::copy(program, root.join(place))?;
    let said = process::output(Command::new("ldd").arg(program))?;
    for library in said.split_whitespace().filter(|word| word.starts_with('/')) {
        let place = root.join(library.trim_start_matches('/'));
        if let Some(folder) = place.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::copy(library, &place).with_context(|| format!("copying {library}"))?;
    }
    Ok(())
}
