#pragma once

#include "media/ring.h"
#include "replica/journal.h"
#include "replica/volume_state.h"

namespace peplos::replica {

class LocalJournal;

// One append of a local log, from submit to the end of both the append and the ticket. Pooled.
struct AppendTicket::State final : media::AppendSink {
    void on_append(Result<media::RecordPosition> position, format::Record& record) override;
    // Ends the append without one.
    void settle_now(Result<void> outcome);
    void reset() {
        volume = nullptr;
        admitted_bytes = 0;
        result = {};
        done.reset();
        is_dropped = false;
    }

    LocalJournal* journal = nullptr;
    VolumeState* volume = nullptr;
    uint64_t admitted_bytes = 0;
    Time submitted;
    Result<void> result;
    runtime::Event done;
    bool is_dropped = false;  // nobody will wait
};

}  // namespace peplos::replica
