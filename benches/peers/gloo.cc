// What the mock's operations are compared with: those of Gloo, the CPU library of PyTorch.
//
//     c++ -std=c++17 -O3 -o gloo benches/peers/gloo.cc -lgloo      # Debian: libgloo-dev
//     ./gloo all_reduce -n 2 [-b BYTES] [-e BYTES]
//
// Why C++ and not torch.distributed: the calls below are those that PyTorch's Gloo backend makes
// (an options object and unbound buffers for each call), without Python, PyTorch's dispatcher and
// its queue of worker threads between them and the clock. That is Gloo at its best.
//
// The program forks its ranks, which find each other through files in a temporary folder. They are
// processes, as in use; between threads, too, Gloo would speak TCP over the loopback device. Calls
// return when the result is there, so there is no second column, and --sync-each measures the same
// loop.
//
//   all_reduce      gloo::allreduce by ring, which is its default and PyTorch's, and by bcube; each
//                   size shows the faster, since with two ranks the ring often stalls for some
//                   milliseconds between 1 and 64 KiB.
//   all_gather      gloo::allgather.
//   reduce_scatter  gloo::ReduceScatterHalvingDoubling, the only one that Gloo has. It is bound to
//                   one buffer, which it overwrites, so each call copies the input there and the
//                   result from there.
//   broadcast       in place: the root sends from its input and has no other result. Hold it
//                   against in-place figures.
//   send_recv       sends and receives on unbound buffers, as PyTorch's point-to-point calls.

#include "peer.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <csignal>
#include <exception>
#include <filesystem>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

#include <gloo/allgather.h>
#include <gloo/allreduce.h>
#include <gloo/barrier.h>
#include <gloo/broadcast.h>
#include <gloo/config.h>
#include <gloo/math.h>
#include <gloo/reduce_scatter.h>
#include <gloo/rendezvous/context.h>
#include <gloo/rendezvous/file_store.h>
#include <gloo/transport/tcp/device.h>
#include <gloo/types.h>

namespace {

// How Gloo's functions take a reduction: result, two inputs, elements.
using Reduction = void (*)(void *, const void *, const void *, size_t);

// One rank's end of the connections, and what it does with them.
class Rank {
  public:
    Rank(const options &options, int rank, const std::string &folder)
        : options_(options), rank_(rank), plan_(plan_of(&options, options.ranks)),
          context_(std::make_shared<gloo::rendezvous::Context>(rank, options.ranks)) {
        gloo::transport::tcp::attr loopback;
        loopback.hostname = "127.0.0.1";
        auto device = gloo::transport::tcp::CreateDevice(loopback);
        gloo::rendezvous::FileStore store(folder);
        context_->connectFullMesh(store, device);
        send_ = allocate_input(rank, plan_.largest);
        recv_ = allocate(plan_.largest);
    }

    Rank(const Rank &) = delete;
    Rank &operator=(const Rank &) = delete;

    ~Rank() {
        free(recv_);
        free(send_);
    }

    // The program's exit code.
    int measure() {
        for (int i = 0; i < plan_.number; i++) {
            repeated &size = plan_.sizes[i];
            for (const Call &call : calls_of(size.shape)) {
                run(call, size.shape, 1);
                barrier();
                const double seconds = run(call, size.shape, SAMPLE) / SAMPLE;
                const double longest = all_reduce_double(seconds, gloo::max<double>);
                size.times = affordable(&options_, size.times, longest);
                run(call, size.shape, warmup(&options_, size.times));
            }
        }
        for (int i = 0; i < plan_.number; i++) {
            const auto &[shape, times] = plan_.sizes[i];
            double fastest = std::numeric_limits<double>::infinity();
            for (const Call &call : calls_of(shape)) {
                if (!is_right_by(call, shape)) {
                    return WRONG_DATA;
                }
                run(call, shape, 1);
                barrier();
                const double microseconds = run(call, shape, times) * 1e6 / times;
                // What comes next takes no time from ranks that still measure.
                barrier();
                const double sum = all_reduce_double(microseconds, gloo::sum<double>);
                fastest = std::min(fastest, sum / options_.ranks);
            }
            if (rank_ == 0) {
                printf("%zu %.3f\n", shape.largest * sizeof(float), fastest);
                fflush(stdout);
            }
        }
        barrier(); // nobody leaves while another still sends
        return 0;
    }

  private:
    using Call = std::function<void(float *send, float *recv)>;

    // Seconds that so many calls took.
    double run(const Call &call, const shape &shape, int times) {
        const auto start = std::chrono::steady_clock::now();
        size_t at = 0;
        for (int n = 0; n < times; n++) {
            call(send_ + at, recv_ + at);
            at = next_place(&plan_, &shape, at);
        }
        return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    }

    bool is_right_by(const Call &call, const shape &shape) {
        clear(recv_, shape.recv);
        run(call, shape, 1);
        const bool has_result = options_.operation != BROADCAST || rank_ != 0;
        return !has_result || is_right(options_.operation, &shape, options_.ranks, rank_, recv_);
    }

    // The operation by each algorithm that is to be measured.
    std::vector<Call> calls_of(const shape &shape) {
        if (options_.operation != ALL_REDUCE) {
            return {call_of(shape)};
        }
        const auto all_reduce = [=](gloo::AllreduceOptions::Algorithm algorithm) {
            return [=](float *send, float *recv) {
                gloo::AllreduceOptions call(context_);
                call.setAlgorithm(algorithm);
                call.setInput(send, shape.count);
                call.setOutput(recv, shape.count);
                call.setReduceFunction(static_cast<Reduction>(gloo::sum<float>));
                call.setTag(tag_++);
                gloo::allreduce(call);
            };
        };
        return {all_reduce(gloo::AllreduceOptions::Algorithm::RING),
                all_reduce(gloo::AllreduceOptions::Algorithm::BCUBE)};
    }

    Call call_of(const shape &shape) {
        switch (options_.operation) {
        case ALL_GATHER:
            return [=](float *send, float *recv) {
                gloo::AllgatherOptions call(context_);
                call.setInput(send, shape.send);
                call.setOutput(recv, shape.recv);
                call.setTag(tag_++);
                gloo::allgather(call);
            };
        case REDUCE_SCATTER: {
            auto work = std::make_shared<std::vector<float>>(shape.send);
            const std::vector<int> counts(static_cast<size_t>(options_.ranks),
                                          static_cast<int>(shape.count));
            using Algorithm = gloo::ReduceScatterHalvingDoubling<float>;
            auto algorithm = std::make_shared<Algorithm>(
                context_, std::vector<float *>{work->data()}, static_cast<int>(shape.send), counts);
            return [=](float *send, float *recv) {
                memcpy(work->data(), send, shape.send * sizeof(float));
                algorithm->run();
                memcpy(recv, work->data(), shape.recv * sizeof(float));
            };
        }
        case BROADCAST:
            return [=](float *send, float *recv) {
                gloo::BroadcastOptions call(context_);
                call.setOutput(rank_ == 0 ? send : recv, shape.count);
                call.setRoot(0);
                call.setTag(tag_++);
                gloo::broadcast(call);
            };
        default:
            return [=](float *send, float *recv) {
                const int next = (rank_ + 1) % options_.ranks;
                const int previous = (rank_ + options_.ranks - 1) % options_.ranks;
                const size_t bytes = shape.count * sizeof(float);
                const auto slot = gloo::Slot::build(SEND_RECV_SLOTS, tag_++);
                auto out = context_->createUnboundBuffer(send, bytes);
                auto in = context_->createUnboundBuffer(recv, bytes);
                in->recv(previous, slot);
                out->send(next, slot);
                in->waitRecv();
                out->waitSend();
            };
        }
    }

    void barrier() {
        gloo::BarrierOptions call(context_);
        call.setTag(tag_++);
        gloo::barrier(call);
    }

    double all_reduce_double(double value, Reduction reduction) {
        gloo::AllreduceOptions call(context_);
        call.setOutput(&value, 1);
        call.setReduceFunction(reduction);
        call.setTag(tag_++);
        gloo::allreduce(call);
        return value;
    }

    // Gloo's own operations use the prefixes up to 0x0a.
    static constexpr uint8_t SEND_RECV_SLOTS = 0x80;

    const options options_;
    const int rank_;
    plan plan_;
    std::shared_ptr<gloo::rendezvous::Context> context_;
    float *send_ = nullptr, *recv_ = nullptr;
    // Each operation has its own, as in PyTorch; equal on all ranks, since all do the same.
    uint32_t tag_ = 0;
};

int run_rank(const options &options, int rank, const std::string &folder) {
    try {
        return Rank(options, rank, folder).measure();
    } catch (const std::exception &error) {
        fprintf(stderr, "gloo, rank %d of %d: %s\n", rank, options.ranks, error.what());
        return FAILED;
    }
}

// Waits for all ranks; when one fails, ends the others, which would wait for it. Answers its code.
int wait_for(std::vector<pid_t> ranks) {
    int code = 0;
    while (!ranks.empty()) {
        int status = 0;
        const pid_t ended = waitpid(-1, &status, 0);
        if (ended < 0) {
            return code == 0 ? FAILED : code;
        }
        for (auto rank = ranks.begin(); rank != ranks.end(); ++rank) {
            if (*rank == ended) {
                ranks.erase(rank);
                break;
            }
        }
        if (status != 0 && code == 0) {
            code = WIFEXITED(status) ? WEXITSTATUS(status) : FAILED;
            for (const pid_t rank : ranks) {
                kill(rank, SIGTERM);
            }
        }
    }
    return code;
}

std::string library() {
    std::string name = "Gloo " + std::to_string(GLOO_VERSION_MAJOR) + "." +
                       std::to_string(GLOO_VERSION_MINOR) + "." +
                       std::to_string(GLOO_VERSION_PATCH);
#ifdef GLOO_PACKAGE
    // The version above has stood still for years.
    name += std::string(" (") + GLOO_PACKAGE + ")";
#endif
    return name + ", TCP over loopback";
}

} // namespace

int main(int argc, char **argv) {
    options options = parse(argc, argv,
                            "gloo OPERATION -n RANKS [-b BYTES] [-e BYTES] [--sync-each] "
                            "[--iters N] [--warmup N]");
    options.ranks = options.ranks == 0 ? 2 : options.ranks;
    if (options.ranks < 2 || options.threads != 0) {
        fprintf(stderr, "want -n of at least 2, and no --threads\n");
        return BAD_USAGE;
    }
    char folder[] = "/tmp/gloo-ranks-XXXXXX";
    if (mkdtemp(folder) == nullptr) {
        perror(folder);
        return FAILED;
    }
    print_settings(&options, library().c_str(), options.ranks);

    std::vector<pid_t> ranks;
    int code = 0;
    for (int rank = 0; rank < options.ranks && code == 0; rank++) {
        const pid_t pid = fork();
        if (pid == 0) {
            const int rank_code = run_rank(options, rank, folder);
            fflush(stdout);
            _exit(rank_code);
        }
        if (pid < 0) {
            perror("fork");
            code = FAILED;
            for (const pid_t started : ranks) {
                kill(started, SIGTERM);
            }
        } else {
            ranks.push_back(pid);
        }
    }
    const int ranks_code = wait_for(std::move(ranks));
    std::error_code ignored; // a folder left behind is no failure of the measurement
    std::filesystem::remove_all(folder, ignored);
    return code == 0 ? ranks_code : code;
}
