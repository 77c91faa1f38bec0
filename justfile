# What this project is worked on with. `just` alone lists the recipes.

# List the recipes
default:
    @just --list

# Run every test that needs no GPU
test *options:
    cargo test --workspace {{ options }}

# Try the mock's concurrent cores in all interleavings (LOOM_MAX_PREEMPTIONS, LOOM_LOG)
loom *options:
    RUSTFLAGS='--cfg loom' CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/loom" \
        cargo test --package collectives-backend-mock --lib loom_tests {{ options }}

# Run the mock under Miri; needs `rustup toolchain install nightly --component miri,rust-src`
miri *options:
    PROPTEST_CASES=4 MIRIFLAGS='-Zmiri-disable-isolation -Zmiri-permissive-provenance' \
        CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/miri" \
        cargo +nightly miri test --package collectives-backend-mock --lib --test engine {{ options }}

# Run everything that a change must pass
ci:
    .ci/run

# Run 10,000 random programs against a sequential oracle; kill a rank in each tenth
soak:
    cargo run --release --package collectives-soak

# Test against unmodified NCCL, RCCL and HIP, downloaded once (nccl-2.28.9 rccl-2.27.7 …)
real-libraries *names:
    scripts/real-libraries {{ names }}

# Run a C program that was compiled against NVIDIA's nccl.h on the mock (headers downloaded once)
mock-c *options='fetch valgrind asan':
    scripts/mock-c {{ options }}
    scripts/mock-c plain {{ options }}

# Run a ctypes client of NCCL on the mock: 4 processes, host memory
mock-client *options:
    cargo build --package collectives-mock-abi
    python3 crates/mock-abi/tests/python/client.py \
        "${CARGO_TARGET_DIR:-target}/debug/libcollectives_mock_abi.so" 4 {{ options }}

# Measure the mock against MPI, Gloo and the machine's memory: docs/performance/mock.json
bench-peers *options:
    cargo run --release --package collectives-bench -- peers --out docs/performance {{ options }}

# Measure NCCL against nccl-tests, torch.distributed and ctypes: docs/performance/nccl.json
gpu-bench *options:
    cargo build --release --package collectives-cli
    cargo run --release --package collectives-bench -- gpu \
        --bin "${CARGO_TARGET_DIR:-target}/release" --out docs/performance {{ options }}

# Measure what each layer adds to a call: docs/performance/overhead.json
bench-overhead:
    cargo run --release --package collectives-bench -- overhead --out docs/performance

# Write docs/performance.md and its figures from docs/performance/*.json (--check: compare)
perf-docs *options:
    cargo run --package collectives-bench -- render {{ options }}
