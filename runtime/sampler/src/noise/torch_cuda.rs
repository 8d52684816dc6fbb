//! The noise of `torch.randn(..., device="cuda")`, for results that match a run of the reference.

use rayon::prelude::*;

use super::{NoiseSource, empty, philox::philox4x32_10, philox::words};
use crate::Error;

/// Threads of a block in torch's launch of its normal kernel.
const BLOCK: u64 = 256;

/// Values that a thread makes per round: one Philox block.
const PER_THREAD: u64 = 4;

/// The two properties of a GPU that decide which of torch's random numbers goes where.
///
/// Torch starts at most as many threads as the GPU holds at once, and each works through several elements, so the
/// same seed gives other noise on a GPU of another size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CudaGeometry {
    multiprocessors: u32,
    threads_per_multiprocessor: u32,
}

/// Published figures: multiprocessors of the product, and the most resident threads of each for its compute
/// capability (2048 for 8.0, 9.0 and 10.0; 1536 for 8.6, 8.9 and 12.0).
const GPUS: [(&str, u32, u32); 10] = [
    ("a100", 108, 2048),
    ("b200", 148, 2048),
    ("h100-pcie", 114, 2048),
    ("h100-sxm", 132, 2048),
    ("h200", 132, 2048),
    ("l40s", 142, 1536),
    ("rtx-3090", 82, 1536),
    ("rtx-4090", 128, 1536),
    ("rtx-5090", 170, 1536),
    ("rtx-pro-6000", 188, 1536),
];

impl CudaGeometry {
    /// A GPU of `multiprocessors` (torch: `multi_processor_count`) with `threads_per_multiprocessor` resident threads
    /// each (torch: `max_threads_per_multi_processor`).
    ///
    /// # Errors
    ///
    /// [`Error::Geometry`] when no block of 256 threads fits, or for counts beyond any GPU.
    pub fn new(multiprocessors: u32, threads_per_multiprocessor: u32) -> Result<Self, Error> {
        let plausible = 1..=u32::from(u16::MAX);
        if plausible.contains(&multiprocessors)
            && plausible.contains(&threads_per_multiprocessor)
            && u64::from(threads_per_multiprocessor) >= BLOCK
        {
            Ok(Self { multiprocessors, threads_per_multiprocessor })
        } else {
            Err(Error::Geometry { multiprocessors, threads_per_multiprocessor })
        }
    }

    /// The geometry of a GPU by name, as in [`Self::names`].
    pub fn by_name(name: &str) -> Option<Self> {
        GPUS.iter().find(|gpu| gpu.0 == name).map(|&(_, multiprocessors, threads)| Self {
            multiprocessors,
            threads_per_multiprocessor: threads,
        })
    }

    /// The known names.
    pub fn names() -> impl Iterator<Item = &'static str> {
        GPUS.iter().map(|gpu| gpu.0)
    }

    /// Multiprocessors of the GPU.
    pub fn multiprocessors(self) -> u32 {
        self.multiprocessors
    }

    /// Most resident threads of a multiprocessor.
    pub fn threads_per_multiprocessor(self) -> u32 {
        self.threads_per_multiprocessor
    }

    /// Most blocks of one launch.
    fn blocks(self) -> u64 {
        u64::from(self.multiprocessors) * (u64::from(self.threads_per_multiprocessor) / BLOCK)
    }
}

/// The GPU that the reference vectors were made on.
impl Default for CudaGeometry {
    fn default() -> Self {
        Self { multiprocessors: 132, threads_per_multiprocessor: 2048 }
    }
}

/// `torch.randn(n, device="cuda", dtype=torch.float32, generator=g)` with `g = torch.Generator("cuda")` seeded with
/// `seed`, call by call.
///
/// Philox counters and their order are exact; logarithm, sine and cosine are correctly rounded where CUDA's are
/// approximations, which leaves differences below 5e-6.
#[derive(Debug, Clone)]
pub struct TorchCuda {
    seed: u64,
    geometry: CudaGeometry,
    /// Philox blocks that every thread has used up: torch's `philox_offset / 4`.
    round: u64,
}

impl TorchCuda {
    /// The generator of `seed` on a GPU of `geometry`, before its first draw.
    pub fn new(seed: u64, geometry: CudaGeometry) -> Self {
        Self { seed, geometry, round: 0 }
    }
}

impl NoiseSource for TorchCuda {
    fn draw(&mut self, n: usize) -> Result<Vec<f32>, Error> {
        let mut out = empty(n)?;
        if n == 0 {
            return Ok(out);
        }
        out.resize(n, 0.0);
        let threads = self.geometry.blocks().min((n as u64).div_ceil(BLOCK)) * BLOCK;
        let (key, stride) = (words(self.seed), threads as usize);
        let mut normals = vec![[0.0f32; PER_THREAD as usize]; stride];
        // In round r, value k of thread i is element 4 T r + k T + i: each round fills four rows of T elements.
        for rows in out.chunks_mut(stride * PER_THREAD as usize) {
            let [low, high] = words(self.round);
            normals.par_iter_mut().enumerate().with_min_len(1024).for_each(|(thread, four)| {
                let [thread_low, thread_high] = words(thread as u64);
                *four = normals_of(philox4x32_10([low, high, thread_low, thread_high], key));
            });
            for (k, row) in rows.chunks_mut(stride).enumerate() {
                row.iter_mut().zip(&normals).for_each(|(out, four)| *out = four[k]);
            }
            self.round = self.round.wrapping_add(1);
        }
        Ok(out)
    }
}

fn normals_of([a, b, c, d]: [u32; 4]) -> [f32; 4] {
    let ([first, second], [third, fourth]) = (box_muller(a, b), box_muller(c, d));
    [first, second, third, fourth]
}

/// Box-Muller as cuRAND does it: the uniforms are f32 in (0, 1] and (0, 2 pi], sine before cosine.
fn box_muller(a: u32, b: u32) -> [f32; 2] {
    const SCALE: f32 = 1.0 / (1u64 << 32) as f32;
    const ANGLE: f32 = SCALE * std::f32::consts::TAU;
    let uniform = (a as f32).mul_add(SCALE, SCALE / 2.0);
    let angle = f64::from((b as f32).mul_add(ANGLE, ANGLE / 2.0));
    let radius = libm::sqrt(-2.0 * libm::log(f64::from(uniform)));
    [(radius * libm::sin(angle)) as f32, (radius * libm::cos(angle)) as f32]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn geometry_is_checked() {
        assert!(CudaGeometry::new(170, 1536).is_ok());
        for (sms, threads) in [(0, 2048), (132, 255), (132, 0), (u32::MAX, u32::MAX)] {
            assert!(
                matches!(CudaGeometry::new(sms, threads), Err(Error::Geometry { .. })),
                "{sms}x{threads}"
            );
        }
        assert_eq!(CudaGeometry::by_name("h200"), Some(CudaGeometry::default()));
        assert_eq!(CudaGeometry::by_name("voodoo2"), None);
        for name in CudaGeometry::names() {
            let gpu = CudaGeometry::by_name(name).unwrap();
            assert_eq!(
                CudaGeometry::new(gpu.multiprocessors(), gpu.threads_per_multiprocessor()).unwrap(),
                gpu
            );
        }
    }

    #[test]
    fn small_draws_do_not_depend_on_the_gpu_and_large_ones_do() {
        let draw = |gpu: &str, n| TorchCuda::new(3, CudaGeometry::by_name(gpu).unwrap()).draw(n).unwrap();
        assert_eq!(draw("h200", 1000), draw("rtx-5090", 1000));
        let (a, b) = (draw("h200", 2_000_000), draw("rtx-5090", 2_000_000));
        assert_ne!(a, b);
        assert_eq!(a, draw("h100-sxm", 2_000_000));
    }

    #[test]
    fn values_are_finite_at_the_ends_of_the_uniforms() {
        for (a, b) in [(0, 0), (u32::MAX, u32::MAX), (0, u32::MAX), (u32::MAX, 0)] {
            assert!(box_muller(a, b).iter().all(|x| x.is_finite()), "{a} {b}");
        }
    }
}
