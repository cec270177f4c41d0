#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <utility>

#include "base/fault.h"
#include "sim/random.h"

namespace peplos::sim {

// Answers FAULT and counts PROBE (base/fault.h) while it exists; the latest one made is asked.
class FaultPlan final : public base::FaultHooks {
  public:
    explicit FaultPlan(uint64_t seed)
        : random_(seed, 0xfa017), outer_(std::exchange(base::fault_hooks, this)) {}
    FaultPlan(const FaultPlan&) = delete;
    FaultPlan& operator=(const FaultPlan&) = delete;
    ~FaultPlan() override {
        if (base::fault_hooks == this) base::fault_hooks = outer_;
    }

    // The FAULT of this name is true `count` times, after it was passed `skip` times.
    void arm(std::string name, uint64_t count = 1, uint64_t skip = 0) {
        armed_[std::move(name)] = Armed{count, skip, 1000};
    }
    // The FAULT of this name is true in `permille` of 1,000 cases, by the seed.
    void arm_chance(std::string name, uint32_t permille) {
        armed_[std::move(name)] = Armed{UINT64_MAX, 0, permille};
    }
    void disarm(std::string_view name) {
        if (auto it = armed_.find(name); it != armed_.end()) armed_.erase(it);
    }
    // The PLANTED of this name is true from now on; one at a time.
    void plant(std::string name) { planted_ = std::move(name); }
    // How often it was.
    uint64_t planted_count() const { return planted_count_; }
    // How often the FAULT of this name was true.
    uint64_t fault_count(std::string_view name) const { return count_in(faults_, name); }
    // How often the PROBE of this name was passed.
    uint64_t probe_count(std::string_view name) const { return count_in(probes_, name); }
    const std::map<std::string, uint64_t, std::less<>>& probes() const { return probes_; }
    // Every FAULT that was passed, and how often.
    const std::map<std::string, uint64_t, std::less<>>& passes() const { return passes_; }
    const std::map<std::string, uint64_t, std::less<>>& faults() const { return faults_; }

    bool fault(const char* name) override {
        ++count_for(passes_, name);
        if (armed_.empty()) return false;
        auto it = armed_.find(std::string_view(name));
        if (it == armed_.end()) return false;
        Armed& armed = it->second;
        if (armed.skip != 0) {
            --armed.skip;
            return false;
        }
        if (armed.count == 0) return false;
        if (armed.permille != 1000 && !random_.chance(armed.permille)) return false;
        --armed.count;
        ++faults_[name];
        return true;
    }
    void probe(const char* name) override { ++count_for(probes_, name); }
    bool planted(const char* name) override {
        if (planted_.empty() || planted_ != name) return false;
        ++planted_count_;
        return true;
    }

  private:
    struct Armed {
        uint64_t count;
        uint64_t skip;
        uint32_t permille;
    };
    using Counts = std::map<std::string, uint64_t, std::less<>>;
    static uint64_t& count_for(Counts& counts, const char* name) {
        auto it = counts.find(std::string_view(name));
        if (it == counts.end()) it = counts.emplace(name, 0).first;
        return it->second;
    }
    static uint64_t count_in(const Counts& counts, std::string_view name) {
        auto it = counts.find(name);
        return it == counts.end() ? 0 : it->second;
    }

    std::map<std::string, Armed, std::less<>> armed_;
    Counts faults_;
    Counts passes_;  // of a FAULT, true or not
    Counts probes_;
    std::string planted_;
    uint64_t planted_count_ = 0;
    Random random_;
    base::FaultHooks* outer_;
};

}  // namespace peplos::sim
