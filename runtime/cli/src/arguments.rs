//! The command line of `turbo-run`.

use std::num::NonZeroU32;
use std::path::PathBuf;

use clap::builder::TypedValueParser;
use clap::{Args, Parser, Subcommand, ValueHint};
use turbo_engine_file::Sampler;
use turbo_sampler::NoiseKind;

use crate::size::Size;

/// Runs an engine file: a prompt (and an image) to a video
#[derive(Parser)]
#[command(name = "turbo-run", version, args_conflicts_with_subcommands = true)]
#[command(
    after_help = "Exit codes: 0 ok, 2 usage, 3 bad input file, 4 does not fit this machine, 130 interrupted"
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Option<Command>,

    /// Engine file made by turbo-compile
    #[arg(value_name = "ENGINE", value_hint = ValueHint::FilePath)]
    pub engine: Option<PathBuf>,
    /// What the video shows
    #[arg(short, long, value_name = "TEXT")]
    pub prompt: Option<String>,
    /// First frame, for image-to-video engines; scaled to the video's size
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub image: Option<PathBuf>,
    /// Where the video goes: .mp4, .gif, .webp, .safetensors, or a folder of PNG files
    #[arg(short, long, value_name = "PATH", default_value = "out.mp4", value_hint = ValueHint::AnyPath)]
    pub output: PathBuf,
    /// Also write evenly spaced frames as one PNG
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub contact_sheet: Option<PathBuf>,

    #[command(flatten)]
    pub video: VideoArguments,

    /// Seed of the noise; the same seed gives the same video on every machine
    #[arg(long, default_value_t = 0, help_heading = "Sampling")]
    pub seed: u64,
    /// Steps, 1 to 4 [default: the engine file's]
    #[arg(long, value_name = "N", help_heading = "Sampling")]
    pub steps: Option<u32>,
    /// sde (fresh noise each step) or ode (sharper, less robust) [default: the engine file's]
    #[arg(long, value_parser = parse_sampler, help_heading = "Sampling")]
    pub sampler: Option<Sampler>,
    /// First noise level [default: the engine file's]
    #[arg(long, value_name = "SIGMA", help_heading = "Sampling")]
    pub sigma_max: Option<f64>,
    /// portable, torch-cuda[:GPU] (the numbers of torch.randn on a GPU), or file:NOISE.safetensors
    #[arg(long, value_name = "KIND", default_value = "portable", help_heading = "Sampling")]
    pub noise: NoiseKind,

    #[command(flatten)]
    pub machine: MachineArguments,
    /// Folder of cached prompt embeddings [default: the user's cache folder]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath, help_heading = "Machine")]
    pub cache_dir: Option<PathBuf>,
    /// Neither read nor write cached prompt embeddings
    #[arg(long, conflicts_with = "cache_dir", help_heading = "Machine")]
    pub no_cache: bool,

    /// Print a machine-readable report on standard output
    #[arg(long)]
    pub json: bool,
    /// Print nothing but errors
    #[arg(short, long, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Also print where each part of the time went
    #[arg(short, long)]
    pub verbose: bool,
}

/// What else the command does.
#[derive(Subcommand)]
pub enum Command {
    /// Time whole forwards of an engine file's stages over random inputs
    Bench(BenchArguments),
    /// Print a shell completion script
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page
    Man,
}

/// What is timed, and how often.
#[derive(Args)]
pub struct BenchArguments {
    /// Engine file made by turbo-compile
    #[arg(value_name = "ENGINE", value_hint = ValueHint::FilePath)]
    pub engine: PathBuf,
    /// Stage to time; may be given several times [default: all that the video needs]
    #[arg(long = "stage", value_name = "NAME")]
    pub stages: Vec<String>,
    /// Timed runs of each stage, after one that is not
    #[arg(long, value_name = "N", default_value = "20")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..).try_map(NonZeroU32::try_from))]
    pub runs: NonZeroU32,
    /// Print a machine-readable report on standard output
    #[arg(long)]
    pub json: bool,

    #[command(flatten)]
    pub video: VideoArguments,
    #[command(flatten)]
    pub machine: MachineArguments,
}

/// Which of an engine file's videos.
#[derive(Args)]
pub struct VideoArguments {
    /// Size of the video, one of those that the engine file has [default: its first]
    #[arg(long, value_name = "WxH", help_heading = "Video")]
    pub size: Option<Size>,
    /// Number of frames, one of those that the engine file has [default: its first]
    #[arg(long, value_name = "N", help_heading = "Video")]
    pub frames: Option<u32>,
}

/// What a command takes from the machine.
#[derive(Args)]
pub struct MachineArguments {
    /// ONNX Runtime's library [default: searched next to the command and on the loader's path]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = "Machine")]
    pub onnxruntime: Option<PathBuf>,
    /// TensorRT: its folder, or libnvinfer itself [default: TENSORRT_ROOT, then the loader's path]
    #[arg(long, value_name = "PATH", value_hint = ValueHint::AnyPath, help_heading = "Machine")]
    pub tensorrt: Option<PathBuf>,
    /// Folder of libturbo_trt and libturbo_plugins [default: beside this program, then target/gpu/lib]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath, help_heading = "Machine")]
    pub gpu_libraries: Option<PathBuf>,
    /// Threads [default: all cores]
    #[arg(long, value_name = "N", help_heading = "Machine", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
}

fn parse_sampler(s: &str) -> Result<Sampler, String> {
    match s {
        "sde" => Ok(Sampler::Sde),
        "ode" => Ok(Sampler::Ode),
        _ => Err(format!("`{s}` is not a sampler; write sde or ode")),
    }
}
