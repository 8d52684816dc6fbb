#!/usr/bin/env bash
# Everything that needs a GPU, in the folder that `cargo xtask carry` made; tests/gpu/README.md says what it is.
#
#   all.sh TENSORRT OUT [SCRATCH]
#
# TENSORRT is the folder of TensorRT's libraries. Reports and logs go to OUT, OUT/progress says how far it is, and
# OUT/failed what failed. SCRATCH, on a fast disk, keeps weights and plans (60 GB). With two GPUs the second has the
# networks alone, with one they go first. Compute-sanitizer comes last, on all GPUs: its runs take the cores that builds
# and golden vectors need.
set -u
: "${2:?usage: all.sh TENSORRT OUT [SCRATCH]}"
tensorrt=$(realpath "$1")
out=$(realpath -m "$2")
scratch=$(realpath -m "${3:-$out/scratch}")
cd "$(dirname "$0")" || exit 2
mkdir -p "$out" "$scratch"
export LD_LIBRARY_PATH=$tensorrt${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} TMPDIR=$scratch
rm -f "$out/progress" "$out/failed"
gpus=$(nvidia-smi --query-gpu=index --format=csv,noheader | wc -l)
last=$((gpus - 1))

# say WHAT RESULT: a line of the progress, with the seconds since the start.
say() { echo "$SECONDS s: $*" >>"$out/progress"; }

# on GPU NAME COMMAND...: runs it, its log in OUT/NAME.log.
on() {
    local gpu=$1 name=$2
    shift 2
    CUDA_VISIBLE_DEVICES=$gpu "$@" >"$out/$name.log" 2>&1
    local code=$?
    say "$name: exit code $code, $(tail -n 1 "$out/$name.log")"
    [ "$code" = 0 ] || echo "$name" >>"$out/failed"
}

# tested GPU NAME ARGUMENTS...: gpu_test with a report.
tested() {
    local gpu=$1 name=$2
    shift 2
    on "$gpu" "$name" ./gpu_test --tensorrt "$tensorrt" --json "$out/$name.json" "$@"
}

# built NETWORK...: one after the other.
built() {
    local network
    for network; do
        tested "$last" "build-$network" --no-ops --only-build --scratch "$scratch" --networks "$network"
    done
}

# Three builds at a time, then forwards and kernels one by one, whose times nothing else on the GPU disturbs.
networks() {
    built 14b-480p-w8a8 14b-720p-w8a8 14b-720p-fp8 &
    built 14b-480p-bf16 14b-720p-bf16 &
    built 1.3b-480p-w8a8 1.3b-480p-fp8 1.3b-720p-w8a8 1.3b-480p-bf16 1.3b-720p-bf16 &
    wait
    local network
    for network in 1.3b-720p-bf16 1.3b-{480p-w8a8,720p-w8a8,480p-fp8,480p-bf16} \
        14b-{720p-w8a8,480p-w8a8,720p-fp8,480p-bf16,720p-bf16}; do
        tested "$last" "run-$network" --no-ops --scratch "$scratch" --networks "$network"
    done
    on "$last" bench ./turbo-kernels bench --json "$out/bench.json"
}

correctness() {
    tested 0 blocks --no-ops --networks 1.3b-small-w8a8-block,14b-small-w8a8-block,1.3b-small-bf16-block
    tested 0 ops
    # The demo's refusal for want of memory takes all of it, so nothing else is on this GPU.
    tested 0 demo --no-ops --demo
    on 0 compile ./turbo-compile demo --target trt --tensorrt "$tensorrt" --build-cache "$scratch/cache" \
        -o "$scratch/demo.plan"
    on 0 turbo-run-bench ./turbo-run bench "$scratch/demo.plan" --tensorrt "$tensorrt"
    tested 0 golden --no-ops --golden golden
    on 0 kernels ./turbo-kernels test --json "$out/kernels.json"
    local family
    for family in portable ampere; do
        TURBO_KERNELS=$family on 0 "kernels-$family" ./turbo-kernels test --json "$out/kernels-$family.json"
    done
}

# sanitized GPU TOOL [OP I/N]: all cases, or a part of an op's.
sanitized() {
    on "$1" "$2${3:+-$3-${4%/*}}" compute-sanitizer --tool "$2" --error-exitcode 3 \
        ./turbo-kernels test --bare ${3:+--op "$3" --part "$4"}
}

# As many processes as there are cores; racecheck is slow, so the ops with most cases are divided.
sanitizers() {
    export RAYON_NUM_THREADS=2
    local cores tool op part parts
    cores=$(nproc)
    for tool in memcheck initcheck synccheck; do sanitized 0 "$tool" & done
    for op in W8A8Linear W8A8LinearQkv W8A8LinearResidual NormQuantize Linear W8A8LinearQuantize SageSla BlockMap \
        SageAttention Sla Attention Norm NormRope Quantize; do
        case $op in W8A8* | NormQuantize) parts=6 ;; *) parts=1 ;; esac
        for ((part = 1; part <= parts; part++)); do
            while [ "$(jobs -rp | wc -l)" -ge "$cores" ]; do wait -n; done
            sanitized $((part % 2 * last)) racecheck "Turbo$op" "$part/$parts" &
        done
    done
    wait
}

if [ "$gpus" -gt 1 ]; then
    export RAYON_NUM_THREADS=8
    # In the background, so that it waits for its own builds and not for all of them.
    networks &
    correctness
    wait
else
    networks
    correctness
fi
if command -v compute-sanitizer >/dev/null; then sanitizers; fi
if [ -e "$out/failed" ]; then
    say "all done, failed: $(tr '\n' ' ' <"$out/failed")"
    exit 1
fi
say "all done"
