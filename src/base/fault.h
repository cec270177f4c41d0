#pragma once

// FAULT("room.name") stands beside a real decision and is true only when a test or the simulator
// asked for that fault at this moment. PROBE("room.name") records that a rare path ran.
// PLANTED("mechanism.mistake") stands where a mistake would be easy to make, and is true only in a
// simulator that was told to make it: so it is known that the simulator finds such mistakes.
// Each costs one predictable branch where nobody listens, and each is listed in sites().

namespace peplos::base {

// Set by the simulator; null in production, where nothing that is linked could set it.
struct FaultHooks {
    virtual ~FaultHooks() = default;
    virtual bool fault(const char* name) = 0;
    virtual void probe(const char* name) = 0;
    virtual bool planted(const char* name) = 0;
};

inline FaultHooks* fault_hooks = nullptr;

enum class SiteKind : char { fault, probe, planted };

// One use of a macro below in the code that a program was linked from.
struct Site {
    SiteKind kind;
    const char* name;
};

// The linker gathers them, and gives their section these two ends.
extern const Site sites_begin[] __asm__("__start_peplos_sites");
extern const Site sites_end[] __asm__("__stop_peplos_sites");

}  // namespace peplos::base

#define PEPLOS_SITE(kind, name)                                       \
    [[gnu::section("peplos_sites"),                                   \
      gnu::used]] static constexpr ::peplos::base::Site peplos_site { \
        ::peplos::base::SiteKind::kind, name                          \
    }
#define FAULT(name)                                                                        \
    ({                                                                                     \
        PEPLOS_SITE(fault, name);                                                          \
        ::peplos::base::fault_hooks != nullptr&& ::peplos::base::fault_hooks->fault(name); \
    })
#define PROBE(name)                                                                           \
    do {                                                                                      \
        PEPLOS_SITE(probe, name);                                                             \
        if (::peplos::base::fault_hooks != nullptr) ::peplos::base::fault_hooks->probe(name); \
    } while (false)
#define PLANTED(name)                                                                        \
    ({                                                                                       \
        PEPLOS_SITE(planted, name);                                                          \
        ::peplos::base::fault_hooks != nullptr&& ::peplos::base::fault_hooks->planted(name); \
    })
