// SPDX-License-Identifier: Apache-2.0
#include "plan_compare.hpp"

#include <cmath>
#include <map>
#include <regex>

#include <kith/error.hpp>
#include <kith/topology/any.hpp>

namespace bench::plan {
namespace {

constexpr double bytes_per_us_of_mbit = 1e6 / 8 / 1e6;

// "1 Gbit/s" in bytes a microsecond, from the number and the letter.
double rate_of(const std::string& number, const std::string& unit) {
  return std::stod(number) * (unit == "G" ? 1000 : 1) * bytes_per_us_of_mbit;
}

}  // namespace

Cluster cluster_of(const std::string& network, kith::Rank nodes, const std::string& congestion_control) {
  static const std::regex form{R"(([0-9.]+) ([MG])bit/s, ([0-9.]+) ms(?:, one node ([0-9.]+) ([MG])bit/s)?)"};
  std::smatch parts;
  if (!std::regex_match(network, parts, form))
    throw kith::UsageError("\"" + network + "\" is no network as the lab names them: 100 Mbit/s, 5 ms");
  Cluster cluster{.ranks = nodes};
  cluster.inter = {.latency_us = 1e3 * std::stod(parts[3]), .bytes_per_us = rate_of(parts[1], parts[2])};
  cluster.wire_bytes_per_byte = tcp_wire_bytes_per_byte;
  if (congestion_control == "bbr") cluster.sending_round_trips = bbr_round_trips;
  if (parts[4].matched) {  // the last one
    cluster.rates_by_machine.assign(static_cast<std::size_t>(nodes), cluster.inter.bytes_per_us);
    cluster.rates_by_machine.back() = rate_of(parts[4], parts[5]);
  }
  require_cluster(cluster);
  return cluster;
}

std::vector<Comparison> compare(const nlohmann::json& record) {
  std::vector<Comparison> all;
  try {
    const std::string congestion_control = record.at("context").at("tcp_congestion_control");
    std::map<std::string, double> dropped;
    for (const nlohmann::json& one : record.at("switches"))
      dropped[one.at("network")] = one.at("dropped").get<double>() / one.at("frames").get<double>();
    for (const nlohmann::json& result : record.at("results")) {
      const std::string exchange = result.at("exchange");
      const bool is_gossip = exchange == "Kith";
      if (!is_gossip && exchange != "MPI_Allreduce") continue;
      Comparison one{.network = result.at("network"), .exchange = exchange, .is_gossip = is_gossip};
      const Cluster cluster = cluster_of(one.network, result.at("nodes"), congestion_control);
      one.bytes = result.at("bytes");
      if (is_gossip) {
        const std::string topology = result.at("topology");
        one.exchange += ' ' + topology;
        constexpr std::size_t rounds = 120;
        one.predicted_us = gossip(cluster, kith::parse_topology(topology), {.bytes = one.bytes}, rounds).round_us();
      } else {
        const AllReduce all_reduce = open_mpi_all_reduce(cluster, one.bytes);
        one.exchange += " (" + all_reduce.algorithm + ")";
        one.predicted_us = all_reduce.us;
      }
      one.measured_us_p25 = result.at("time_us_p25");
      one.measured_us_p50 = result.at("time_us_p50");
      one.measured_us_p75 = result.at("time_us_p75");
      one.dropped_share = dropped[one.network];
      all.push_back(one);
    }
  } catch (const nlohmann::json::exception& error) {
    throw kith::UsageError(std::string{"this is no record of the slow-network lab: "} + error.what());
  }
  return all;
}

}  // namespace bench::plan
