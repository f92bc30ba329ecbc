// SPDX-License-Identifier: Apache-2.0
// tcp_streams: what plain TCP makes of the traffic of a gossip round. The lab compares Kith with it.
//
// In every round each node sends so many bytes to every peer that the topology names, over connections that stay open,
// all at the same time, and is done when it has sent and received everything. Nothing is computed. The nodes are
// threads of this one process, each in the network namespace of its node: they share a clock, and a barrier that does
// not travel over the network.
#include <algorithm>
#include <barrier>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <map>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <sys/socket.h>
#include <unistd.h>
#include <CLI/CLI.hpp>
#include <kith/topology/any.hpp>
#include <nlohmann/json.hpp>

#include "statistics.hpp"

namespace {

using Clock = std::chrono::steady_clock;
using kith::Rank;
using kith::Round;

constexpr int port = 7000;
constexpr int patience_ms = 120'000;
constexpr std::size_t buffer_bytes = std::size_t{1} << 20;

struct Options {
  std::string topology = "one-peer-exponential";
  std::vector<std::string> namespaces;  // files, one for each node
  std::vector<std::string> addresses;   // IPv4
  std::vector<std::size_t> bytes = {4096};
  std::vector<std::size_t> rounds = {3};
};

// What the nodes share.
struct Plan {
  const Options& options;
  kith::AnyTopology topology;
  Rank nodes;
  Round warmup;
  std::barrier<> barrier;
  std::vector<Clock::time_point> begins;
  std::vector<Clock::time_point> ends;
  nlohmann::json results = nlohmann::json::array();
};

template <class T>
T checked(T result, const char* what) {
  if (result < 0) throw std::system_error(errno, std::generic_category(), what);
  return result;
}

class Socket {
public:
  explicit Socket(int descriptor) : descriptor_(descriptor) {}
  ~Socket() {
    if (descriptor_ >= 0) close(descriptor_);
  }
  Socket(Socket&& other) noexcept : descriptor_(std::exchange(other.descriptor_, -1)) {}
  Socket& operator=(Socket&&) = delete;
  Socket(const Socket&) = delete;
  Socket& operator=(const Socket&) = delete;
  [[nodiscard]] int descriptor() const noexcept { return descriptor_; }

private:
  int descriptor_;
};

Socket open_socket() { return Socket{checked(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), "socket")}; }

sockaddr_in address_of(const std::string& text) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  if (inet_pton(AF_INET, text.c_str(), &address.sin_addr) != 1)
    throw std::invalid_argument(text + " is not an IPv4 address");
  return address;
}

void be_ready_for_rounds(const Socket& socket) {
  const int on = 1;
  checked(setsockopt(socket.descriptor(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on), "TCP_NODELAY");
  checked(fcntl(socket.descriptor(), F_SETFL, O_NONBLOCK), "O_NONBLOCK");
}

// One node: its connections, one for each peer and direction, and what it does in a round.
class Node {
public:
  Node(Rank rank, Plan& plan) : rank_(rank), plan_(plan), neighborhood_(plan.topology.max_degree(plan.nodes)) {
    enter_namespace();
    connect_to_peers();
  }

  // Every size in turn, and every round of it together with the other nodes.
  void run() {
    Round round = 0;
    for (std::size_t i = 0; i < plan_.options.bytes.size(); ++i) {
      std::vector<double> times_us;
      times_us.reserve(plan_.options.rounds[i]);
      const std::size_t bytes = plan_.options.bytes[i];
      const Round rounds = plan_.warmup + plan_.options.rounds[i];
      for (Round r = 0; r < rounds; ++r) {
        const double time_us = timed_round(round++, bytes);
        if (r >= plan_.warmup) times_us.push_back(time_us);
      }
      if (rank_ != 0) continue;
      const bench::Quartiles time = bench::quartiles(times_us);
      plan_.results.push_back({{"topology", plan_.options.topology},
                               {"bytes", bytes},
                               {"rounds", times_us.size()},
                               {"time_us_p25", time.p25},
                               {"time_us_p50", time.p50},
                               {"time_us_p75", time.p75}});
    }
  }

private:
  struct Transfer {
    int socket;
    short event;  // POLLIN or POLLOUT
    std::size_t left;
  };

  void enter_namespace() const {
    const std::string& file = plan_.options.namespaces[static_cast<std::size_t>(rank_)];
    const Socket descriptor{checked(open(file.c_str(), O_RDONLY | O_CLOEXEC), file.c_str())};
    checked(setns(descriptor.descriptor(), CLONE_NEWNET), "setns");  // of this thread alone
  }

  void connect_to_peers() {
    const Socket listener = open_socket();
    const sockaddr_in here = address_of(plan_.options.addresses[static_cast<std::size_t>(rank_)]);
    const int on = 1;
    checked(setsockopt(listener.descriptor(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on), "SO_REUSEADDR");
    checked(bind(listener.descriptor(), reinterpret_cast<const sockaddr*>(&here), sizeof here), "bind");
    checked(listen(listener.descriptor(), plan_.nodes), "listen");
    plan_.barrier.arrive_and_wait();
    std::size_t sources = 0;
    for (Round round = 0; round < plan_.warmup; ++round) {
      for (const Rank to : plan_round(round).targets())
        if (!outgoing_.contains(to)) connect_to(to);
      for (const auto& source : neighborhood_.sources()) sources += incoming_.emplace(source.rank, -1).second ? 1 : 0;
    }
    for (std::size_t i = 0; i < sources; ++i) accept_from(listener);
    plan_.barrier.arrive_and_wait();
  }

  void connect_to(Rank to) {
    Socket socket = open_socket();
    const sockaddr_in there = address_of(plan_.options.addresses[static_cast<std::size_t>(to)]);
    checked(connect(socket.descriptor(), reinterpret_cast<const sockaddr*>(&there), sizeof there), "connect");
    checked(send(socket.descriptor(), &rank_, sizeof rank_, MSG_NOSIGNAL), "send");
    be_ready_for_rounds(socket);
    outgoing_.emplace(to, socket.descriptor());
    sockets_.push_back(std::move(socket));
  }

  void accept_from(const Socket& listener) {
    Socket socket{checked(accept4(listener.descriptor(), nullptr, nullptr, SOCK_CLOEXEC), "accept")};
    Rank from = -1;
    checked(recv(socket.descriptor(), &from, sizeof from, MSG_WAITALL), "recv");
    be_ready_for_rounds(socket);
    incoming_.at(from) = socket.descriptor();
    sockets_.push_back(std::move(socket));
  }

  const kith::Neighborhood& plan_round(Round round) {
    kith::plan_round(plan_.topology, rank_, plan_.nodes, round, neighborhood_);
    return neighborhood_;
  }

  // Microseconds from the first node's start to the last one's end; what is not rank 0 gets a figure of no meaning.
  double timed_round(Round round, std::size_t bytes) {
    std::vector<Transfer> transfers;
    for (const Rank to : plan_round(round).targets()) transfers.push_back({outgoing_.at(to), POLLOUT, bytes});
    for (const auto& source : neighborhood_.sources()) transfers.push_back({incoming_.at(source.rank), POLLIN, bytes});
    plan_.barrier.arrive_and_wait();
    plan_.begins[static_cast<std::size_t>(rank_)] = Clock::now();
    while (!transfers.empty()) advance(transfers);
    plan_.ends[static_cast<std::size_t>(rank_)] = Clock::now();
    plan_.barrier.arrive_and_wait();
    if (rank_ != 0) return 0;
    const auto time = *std::max_element(plan_.ends.begin(), plan_.ends.end()) -
                      *std::min_element(plan_.begins.begin(), plan_.begins.end());
    return std::chrono::duration<double, std::micro>{time}.count();
  }

  // Moves what can be moved, and waits first if nothing can.
  void advance(std::vector<Transfer>& transfers) {
    std::vector<pollfd> events;
    events.reserve(transfers.size());
    for (const Transfer& transfer : transfers) events.push_back({transfer.socket, transfer.event, 0});
    if (checked(poll(events.data(), events.size(), patience_ms), "poll") == 0)
      throw std::runtime_error("node " + std::to_string(rank_) + " got no further");
    for (std::size_t i = 0; i < transfers.size(); ++i) {
      if (events[i].revents == 0) continue;
      Transfer& transfer = transfers[i];
      const std::size_t most = std::min(transfer.left, buffer_.size());
      const ssize_t moved = transfer.event == POLLOUT ? send(transfer.socket, buffer_.data(), most, MSG_NOSIGNAL)
                                                      : recv(transfer.socket, buffer_.data(), most, 0);
      if (moved < 0 && errno == EAGAIN) continue;
      if (checked(moved, "send or recv") == 0) throw std::runtime_error("a peer has closed its connection");
      transfer.left -= static_cast<std::size_t>(moved);
    }
    std::erase_if(transfers, [](const Transfer& transfer) { return transfer.left == 0; });
  }

  const Rank rank_;
  Plan& plan_;
  kith::Neighborhood neighborhood_;
  std::vector<Socket> sockets_;
  std::map<Rank, int> outgoing_;
  std::map<Rank, int> incoming_;
  std::vector<char> buffer_ = std::vector<char>(buffer_bytes);
};

int run(const Options& options) {
  const auto nodes = static_cast<Rank>(options.namespaces.size());
  const auto topology = kith::AnyTopology::parse(options.topology);
  require_size(topology, nodes);
  if (topology.period(nodes) == 0) throw kith::UsageError("a random schedule has no list of peers to connect to");
  const auto count = static_cast<std::size_t>(nodes);
  Plan plan{options,
            topology,
            nodes,
            topology.period(nodes),  // so that every connection has been used before it is timed
            std::barrier<>{nodes},
            std::vector<Clock::time_point>(count),
            std::vector<Clock::time_point>(count)};
  {
    std::vector<std::jthread> threads;
    threads.reserve(count);
    for (Rank rank = 0; rank < nodes; ++rank)
      threads.emplace_back([rank, &plan] {
        try {
          Node{rank, plan}.run();
        } catch (const std::exception& error) {
          std::fprintf(stderr, "tcp_streams: node %d: %s\n", rank, error.what());
          std::_Exit(1);  // the others wait for this one
        }
      });
  }
  std::puts(plan.results.dump().c_str());
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"Times plain TCP streams between network namespaces, in the pattern of a topology; prints JSON."};
  Options options;
  app.add_option("--topology", options.topology, kith::topology_spellings())->capture_default_str();
  app.add_option("--namespaces", options.namespaces, "files of the nodes' network namespaces")->required();
  app.add_option("--addresses", options.addresses, "IPv4 addresses of the nodes")->required();
  app.add_option("--bytes", options.bytes, "bytes of a stream")->capture_default_str();
  app.add_option("--rounds", options.rounds, "timed rounds of each size")->capture_default_str();
  try {
    app.parse(argc, argv);
    if (options.addresses.size() != options.namespaces.size() || options.rounds.size() != options.bytes.size())
      throw CLI::ValidationError("an address for each namespace, and a number of rounds for each size");
    return run(options);
  } catch (const CLI::ParseError& error) {
    return app.exit(error);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "tcp_streams: %s\n", error.what());
    return 1;
  }
}
