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

# Run the mock under Miri, and NCCL's backend over its C functions; needs `rustup toolchain install nightly --component miri,rust-src`
miri *options:
    # The mock's pool and watch are there once for a process, and nobody waits for them: to Miri, leaks.
    for what in 'collectives-backend-mock --lib --test engine' 'collectives-nccl-family --test in_process'; do \
        PROPTEST_CASES=4 MIRIFLAGS='-Zmiri-disable-isolation -Zmiri-permissive-provenance -Zmiri-ignore-leaks' \
            CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/miri" \
            cargo +nightly miri test --package $what {{ options }} || exit; \
    done

# Run the long cases of the latter under Miri: groups over communicators, splits, shrinks, grows, revokes
miri-long:
    MIRIFLAGS='-Zmiri-disable-isolation -Zmiri-permissive-provenance -Zmiri-ignore-leaks' \
        CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/miri" \
        cargo +nightly miri test --package collectives-nccl-family --test in_process -- --ignored

# Run everything that a change must pass
ci:
    .ci/run

# Run 10,000 random programs against a sequential oracle; kill a rank in each tenth
soak:
    cargo run --release --package collectives-soak

# Lose ranks of a job of processes, and see whether the others go on (--backend, -n, --one-gpu, --json)
drill *options:
    cargo run --release --package collectives-drill -- {{ options }}

# Throw 100,000 random byte streams at the store's server
babble:
    COLLECTIVES_BABBLE=100000 cargo test --release --package collectives-rendezvous --test memory \
        -- --nocapture

# Run PyTorch's TCPStore against ours, each as client and as server; needs torch (no GPU)
torch-store python='python3' *options='':
    cargo build --package collectives-rendezvous --example tcp_store
    {{ python }} crates/rendezvous/tests/python/interop.py \
        "${CARGO_TARGET_DIR:-target}/debug/examples/tcp_store" {{ options }}

# Measure our store's server beside PyTorch's two; needs torch
bench-store python='python3' *options='':
    cargo build --release --package collectives-rendezvous --example tcp_store
    {{ python }} crates/rendezvous/tests/python/throughput.py \
        "${CARGO_TARGET_DIR:-target}/release/examples/tcp_store" {{ options }}

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

# See all GPUs of one host: conformance, carriers of ranks, tables beside nccl-tests; needs them
scale *options:
    scripts/scale {{ options }}

# Run a Python rank and a Rust rank in one communicator, in every way, on the mock: --python, --program, --only
mixed *options:
    cargo build --package collectives --example mixed_rank
    cargo build --package collectives-mock-abi --package collectives-cli
    COLLECTIVES_MOCK_LIB="${CARGO_TARGET_DIR:-target}/debug/libcollectives_mock_abi.so" \
        "${CARGO_TARGET_DIR:-target}/debug/collectives" mock install target/mixed
    scripts/mixed target/mixed/libnccl.so.2 \
        "${CARGO_TARGET_DIR:-target}/debug/examples/mixed_rank" {{ options }}

# Start ranks of the mock by every launcher that is here, on one host and on several: fetch, --python, --only
launchers *options:
    cargo build --package collectives --example launched
    cargo build --package collectives-mock-abi --package collectives-cli
    scripts/launchers "${CARGO_TARGET_DIR:-target}/debug" {{ options }}

# Measure the mock against MPI, Gloo and the machine's memory: docs/performance/mock.json
bench-peers *options:
    cargo run --release --package collectives-bench -- peers --out docs/performance {{ options }}

# Measure the mock through its libnccl.so against the mock itself: docs/performance/library.json
bench-library *options:
    cargo run --release --package collectives-bench -- library --out docs/performance {{ options }}

# Measure NCCL against nccl-tests, torch.distributed and ctypes: docs/performance/nccl.json
gpu-bench *options:
    cargo build --release --package collectives-cli
    cargo run --release --package collectives-bench -- gpu \
        --bin "${CARGO_TARGET_DIR:-target}/release" --out docs/performance {{ options }}

# Measure what each layer adds to a call: docs/performance/overhead.json
bench-overhead:
    cargo run --release --package collectives-bench -- overhead --out docs/performance

# Count what verdicts cost a small operation of the mock, in instructions; needs valgrind
verdict-cost:
    scripts/verdict-cost

# Write docs/performance.md and its figures from docs/performance/*.json (--check: compare)
perf-docs *options:
    cargo run --package collectives-bench -- render {{ options }}
