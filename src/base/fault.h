#pragma once

// FAULT("room.name") stands beside a real decision and is true only when a test or the simulator
// asked for that fault at this moment. PROBE("room.name") records that a rare path ran.
// PLANTED("mechanism.mistake") stands where a mistake would be easy to make, and is true only in a
// simulator that was told to make it: so it is known that the simulator finds such mistakes.
// Each costs one predictable branch where nobody listens.

namespace peplos::base {

// Set by the simulator; null in production.
struct FaultHooks {
    virtual ~FaultHooks() = default;
    virtual bool fault(const char* name) = 0;
    virtual void probe(const char* name) = 0;
    virtual bool planted(const char* name) = 0;
};

inline FaultHooks* fault_hooks = nullptr;

}  // namespace peplos::base

#define FAULT(name) \
    (::peplos::base::fault_hooks != nullptr && ::peplos::base::fault_hooks->fault(name))
#define PROBE(name)                                                                           \
    do {                                                                                      \
        if (::peplos::base::fault_hooks != nullptr) ::peplos::base::fault_hooks->probe(name); \
    } while (false)
#define PLANTED(name) \
    (::peplos::base::fault_hooks != nullptr && ::peplos::base::fault_hooks->planted(name))
