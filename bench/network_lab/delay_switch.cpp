// SPDX-License-Identifier: Apache-2.0
// delay_switch: an Ethernet switch in user space whose links have a rate and a delay, for kernels without sch_netem.
//
// It makes one TAP device per port, which the caller hands to whatever is to be connected, and forwards between them.
// Port i belongs to the station with the MAC address 02:00:00:00:00:<i>; stations know each other's addresses, so there
// is neither flooding nor learning, and whatever is not addressed to a port is dropped.
//
// A frame takes the sender's link (its bits one after the other at the link's rate), then travels for the delay, then
// takes the receiver's link, which may start with its first bits before the last ones are sent: between equal links it
// costs one serialisation, not two. Before the sender's link a frame waits in its TAP device, so that a sender is
// held up rather than robbed; before the receiver's link it waits in a drop-tail queue.
//
// The devices take TCP segments unsplit, up to 64 KiB ("offloads"), which makes the switch fast enough on one core; the
// links count every Ethernet frame that such a segment would have been split into, headers, preamble and gap included.
#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <deque>
#include <memory>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <unistd.h>
#include <CLI/CLI.hpp>

namespace {

using Nanoseconds = std::int64_t;

constexpr int cannot_run = 77;                      // exit status: this machine does not allow it
constexpr std::size_t largest_frame = 65536 + 256;  // a TCP segment of 64 KiB, and headers
constexpr std::size_t link_overhead = 8 + 4 + 12;   // bytes around each frame: preamble, checksum, gap
constexpr Nanoseconds read_ahead = 5'000'000;       // how long a sender's link may be booked in advance
constexpr Nanoseconds longest_wait = 1'000'000'000;

volatile std::sig_atomic_t stopped = 0;

// What stands before each frame: struct virtio_net_hdr of linux/virtio_net.h, which is no C++.
struct OffloadHeader {
  std::uint8_t flags;
  std::uint8_t split;  // 0: this is one frame; else it is to be split
  std::uint16_t header_bytes;
  std::uint16_t payload_bytes;  // of each frame that it is to be split into
  std::uint16_t checksum_begin;
  std::uint16_t checksum_offset;
};
static_assert(sizeof(OffloadHeader) == 10);

struct Options {
  std::string prefix = "port";
  int ports = 2;
  std::vector<double> rates_mbit = {1000};
  double delay_ms = 1;
  double queue_ms = 50;
};

// One frame, behind the header in which the kernel says how to split it.
struct Frame {
  Nanoseconds due = 0;
  std::size_t length = 0;
  std::unique_ptr<std::byte[]> data;
};

struct Port {
  int device = -1;
  double ns_per_byte = 0;
  Nanoseconds sending_until = 0;    // when its link has sent all that was taken from the device
  Nanoseconds receiving_until = 0;  // when its link has received all that is in the queue
  std::deque<Frame> queue;          // to be delivered to the device, in the order of `due`
};

struct Counters {
  std::uint64_t delivered = 0;
  std::uint64_t bytes = 0;
  std::uint64_t dropped = 0;
  Nanoseconds late_sum = 0;
  Nanoseconds late_most = 0;
};

Nanoseconds now() {
  timespec t{};
  clock_gettime(CLOCK_MONOTONIC, &t);
  return static_cast<Nanoseconds>(t.tv_sec) * 1'000'000'000 + t.tv_nsec;
}

[[noreturn]] void fail(const std::string& what) { throw std::system_error(errno, std::generic_category(), what); }

// A TAP device that hands over TCP segments unsplit and without checksums.
int open_device(const std::string& name) {
  const int device = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
  if (device < 0) fail("/dev/net/tun");
  ifreq request{};
  request.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
  std::snprintf(request.ifr_name, sizeof request.ifr_name, "%s", name.c_str());
  if (ioctl(device, TUNSETIFF, &request) < 0) fail("TAP device " + name);
  if (ioctl(device, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4) < 0) fail("offloads of " + name);
  return device;
}

// Bytes that a frame occupies a link for.
std::size_t bytes_on_link(const Frame& frame) {
  OffloadHeader header{};
  std::memcpy(&header, frame.data.get(), sizeof header);
  const std::size_t bytes = frame.length - sizeof header;
  if (header.split == 0 || header.payload_bytes == 0) return bytes + link_overhead;
  // The checksum to be filled in begins with TCP's header, which gives its own length in words of 4 bytes.
  const auto words = std::to_integer<std::size_t>(frame.data[sizeof header + header.checksum_begin + 12]) >> 4;
  const std::size_t headers = std::min<std::size_t>(header.checksum_begin + 4 * words, bytes);
  const std::size_t frames = (bytes - headers + header.payload_bytes - 1) / header.payload_bytes;
  return bytes - headers + frames * (headers + link_overhead);
}

class Switch {
public:
  explicit Switch(const Options& options)
      : delay_(static_cast<Nanoseconds>(options.delay_ms * 1e6)),
        longest_queue_(static_cast<Nanoseconds>(options.queue_ms * 1e6)),
        ports_(static_cast<std::size_t>(options.ports)) {
    for (std::size_t i = 0; i < ports_.size(); ++i) {
      ports_[i].device = open_device(options.prefix + std::to_string(i));
      ports_[i].ns_per_byte = 8e3 / options.rates_mbit[options.rates_mbit.size() == 1 ? 0 : i];
    }
  }
  ~Switch() {
    for (const Port& port : ports_) close(port.device);
  }
  Switch(const Switch&) = delete;
  Switch& operator=(const Switch&) = delete;

  // Forwards until a signal sets `stopped`; those signals are blocked but in `while_waiting`.
  void run(const sigset_t& while_waiting) {
    std::vector<pollfd> events(ports_.size());
    while (stopped == 0) {
      for (Port& port : ports_) deliver(port);
      Nanoseconds next = now() + longest_wait;
      for (std::size_t i = 0; i < ports_.size(); ++i) {
        const Nanoseconds free_at = accept(ports_[i]);
        events[i] = {ports_[i].device, static_cast<short>(free_at == 0 ? POLLIN : 0), 0};
        if (free_at != 0) next = std::min(next, free_at);
      }
      for (const Port& port : ports_)
        if (!port.queue.empty()) next = std::min(next, port.queue.front().due);
      const Nanoseconds wait = std::max<Nanoseconds>(0, next - now());
      const timespec timeout{wait / 1'000'000'000, wait % 1'000'000'000};
      if (ppoll(events.data(), events.size(), &timeout, &while_waiting) < 0 && errno != EINTR) fail("ppoll");
    }
  }

  [[nodiscard]] const Counters& counters() const noexcept { return counters_; }

private:
  // Hands over what is due.
  void deliver(Port& port) {
    while (!port.queue.empty()) {
      Frame& frame = port.queue.front();
      const Nanoseconds late = now() - frame.due;
      if (late < 0) return;
      if (write(port.device, frame.data.get(), frame.length) < 0) {
        ++counters_.dropped;  // the station is down
      } else {
        ++counters_.delivered;
        counters_.bytes += frame.length - sizeof(OffloadHeader);
        counters_.late_sum += late;
        counters_.late_most = std::max(counters_.late_most, late);
      }
      spare_.push_back(std::move(frame.data));
      port.queue.pop_front();
    }
  }

  // Takes what the station sends while its link is free. 0 if the device is empty, else when to come again.
  Nanoseconds accept(Port& port) {
    for (int taken = 0; taken < 16; ++taken) {
      if (port.sending_until > now() + read_ahead) return port.sending_until - read_ahead;
      Frame frame{0, 0, buffer()};
      const ssize_t length = read(port.device, frame.data.get(), largest_frame);
      if (length <= 0) {
        spare_.push_back(std::move(frame.data));
        return 0;
      }
      frame.length = static_cast<std::size_t>(length);
      forward(port, std::move(frame));
    }
    return now();  // the others have their turn first
  }

  void forward(Port& from, Frame frame) {
    std::array<std::uint8_t, 6> address{};
    std::memcpy(address.data(), frame.data.get() + sizeof(OffloadHeader), address.size());
    const double bytes = static_cast<double>(bytes_on_link(frame));
    const Nanoseconds begun = std::max(from.sending_until, now());
    from.sending_until = begun + static_cast<Nanoseconds>(bytes * from.ns_per_byte);
    const bool known = address[0] == 2 && address[5] < ports_.size();
    if (known && enqueue(ports_[address[5]], bytes, begun + delay_, from.sending_until + delay_, frame)) return;
    if (known) ++counters_.dropped;
    spare_.push_back(std::move(frame.data));
  }

  // Books the receiver's link for a frame whose first bit comes at `first` and whose last comes at `last`.
  bool enqueue(Port& to, double bytes, Nanoseconds first, Nanoseconds last, Frame& frame) const {
    const Nanoseconds begin = std::max(first, to.receiving_until);
    if (begin - first > longest_queue_) return false;
    to.receiving_until = std::max(last, begin + static_cast<Nanoseconds>(bytes * to.ns_per_byte));
    frame.due = to.receiving_until;
    to.queue.push_back(std::move(frame));
    return true;
  }

  std::unique_ptr<std::byte[]> buffer() {
    if (spare_.empty()) return std::make_unique_for_overwrite<std::byte[]>(largest_frame);
    std::unique_ptr<std::byte[]> data = std::move(spare_.back());
    spare_.pop_back();
    return data;
  }

  const Nanoseconds delay_;
  const Nanoseconds longest_queue_;
  std::vector<Port> ports_;
  std::vector<std::unique_ptr<std::byte[]>> spare_;
  Counters counters_;
};

// SIGTERM and SIGINT end run(), but only where it waits; the mask to wait with.
sigset_t stop_on_signals() {
  sigset_t ending;
  sigset_t before;
  sigemptyset(&ending);
  for (const int signal : {SIGTERM, SIGINT}) sigaddset(&ending, signal);
  sigprocmask(SIG_BLOCK, &ending, &before);
  for (const int signal : {SIGTERM, SIGINT}) {
    struct sigaction action {};
    action.sa_handler = [](int) { stopped = 1; };
    sigaction(signal, &action, nullptr);
    sigdelset(&before, signal);
  }
  return before;
}

int run(const Options& options) {
  const sigset_t while_waiting = stop_on_signals();
  prctl(PR_SET_TIMERSLACK, 1000UL);  // ppoll would otherwise come back up to 50 us late
  std::unique_ptr<Switch> lan;
  try {
    lan = std::make_unique<Switch>(options);
  } catch (const std::system_error& error) {
    std::printf("skipped: %s\n", error.what());
    return cannot_run;
  }
  std::puts("ready");
  std::fflush(stdout);
  lan->run(while_waiting);
  const Counters& c = lan->counters();
  std::printf("{\"frames\": %llu, \"bytes\": %llu, \"dropped\": %llu, \"late_us_mean\": %.1f, \"late_us_max\": %.1f}\n",
              static_cast<unsigned long long>(c.delivered), static_cast<unsigned long long>(c.bytes),
              static_cast<unsigned long long>(c.dropped),
              c.delivered == 0 ? 0.0 : static_cast<double>(c.late_sum) / 1e3 / static_cast<double>(c.delivered),
              static_cast<double>(c.late_most) / 1e3);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{
      "An Ethernet switch between TAP devices, whose links have a rate and a delay. Prints \"ready\", and its "
      "counters as JSON when SIGTERM or SIGINT ends it; exits with 77 where TAP devices are not allowed."};
  Options options;
  app.add_option("--prefix", options.prefix, "TAP devices are called PREFIX0, PREFIX1, ...")->capture_default_str();
  app.add_option("--ports", options.ports, "number of ports")->check(CLI::Range(2, 256))->capture_default_str();
  app.add_option("--rate", options.rates_mbit, "Mbit/s of the links: one figure for all, or one for each")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--delay", options.delay_ms, "ms one way")->check(CLI::NonNegativeNumber)->capture_default_str();
  app.add_option("--queue", options.queue_ms, "ms that a frame may wait for the receiver's link before it is dropped")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  try {
    app.parse(argc, argv);
    if (options.rates_mbit.size() != 1 && options.rates_mbit.size() != static_cast<std::size_t>(options.ports))
      throw CLI::ValidationError("--rate", "one figure, or one for each port");
    return run(options);
  } catch (const CLI::ParseError& error) {
    return app.exit(error);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "delay_switch: %s\n", error.what());
    return 1;
  }
}
