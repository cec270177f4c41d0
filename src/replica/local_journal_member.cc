#include <algorithm>
#include <set>

#include "base/fault.h"
#include "replica/append_ticket.h"
#include "replica/local_journal.h"

// The media of members' logs. What counts of them after a restart: replica/log_recovery.h.
namespace peplos::replica {

using format::Record;
using format::RecordType;
using media::RecordPosition;
using media::Urgency;

namespace {

format::ClaimBody body_of(const Claim& claim) {
    return {claim.owner, claim.epoch, claim.token};
}
Claim claim_of(const format::ClaimBody& body) {
    return {body.owner, body.epoch, body.token};
}

std::vector<format::LogSpan> spans_of(const VolumeState& state) {
    if (state.member) return state.member->spans;
    return {{0, 0, kNoLimit}};
}

}  // namespace

// ---- what is held ----

const VolumeState* LocalJournal::find_state(VolumeId volume) const {
    auto found = volumes_.find(volume);
    return found == volumes_.end() ? nullptr : found->second.get();
}
VolumeState* LocalJournal::find_state(VolumeId volume) {
    auto found = volumes_.find(volume);
    return found == volumes_.end() ? nullptr : found->second.get();
}

MemberLog::Stored LocalJournal::stored_of(VolumeId volume) const {
    MemberLog::Stored out;
    const VolumeState* state = find_state(volume);
    if (state == nullptr) return out;
    out.token = state->token;
    out.recorded = state->recorded_token;
    out.last_lsn = state->last_lsn;
    out.is_damaged = !state->damage.empty();
    if (state->member) {
        out.fence = claim_of(state->member->fence);
        out.opened_by = claim_of(state->member->opened_by);
        out.version = state->member->version;
    } else {
        out.fence.epoch = state->fence;
        if (state->token) out.opened_by.epoch = state->fence;
    }
    return out;
}

bool LocalJournal::is_damaged(VolumeId volume) const {
    const VolumeState* state = find_state(volume);
    return state != nullptr && !state->damage.empty();
}
bool LocalJournal::is_dropped(VolumeId volume) const {
    const VolumeState* state = find_state(volume);
    return state != nullptr && state->is_dropped;
}
LineageId LocalJournal::lineage_of(VolumeId volume) const {
    const VolumeState* state = find_state(volume);
    return state == nullptr ? LineageId(0) : state->lineage;
}
void LocalJournal::watch(VolumeId volume, AppendWatch* watch) {
    if (watch != nullptr) state_for(volume).watch = watch;
    if (VolumeState* state = find_state(volume); state != nullptr) state->watch = watch;
}

void LocalJournal::end_work(const Work* work) {
    work_.erase(work);
}

// ---- the record that says what the log is ----

format::FenceBody LocalJournal::fence_body(const VolumeState& state) {
    format::FenceBody body{state.token, state.recorded_token, state.member};
    if (!body.member) return body;
    body.member->drained_lsn = std::min(state.trimmed_drained_lsn, state.drained_lsn);
    body.member->meta_lsn = std::min(state.trimmed_meta_lsn, state.meta_lsn);
    return body;
}

Record LocalJournal::fence_record(const VolumeState& state) {
    Record record = state_record(state, RecordType::fence, fence_body(state));
    if (state.is_replaced) record.settled_lsn = Lsn(0);
    return record;
}

void LocalJournal::plan_state(VolumeState& state, const MemberLog::Stored& planned) {
    if (!state.member) {
        state.member.emplace();
        state.member->spans = {{0, 0, kNoLimit}};
    }
    ++state.member->number;
    state.member->fence = body_of(planned.fence);
    state.member->opened_by = body_of(planned.opened_by);
    state.member->version = planned.version;
    state.token = planned.token;
    state.recorded_token = planned.recorded;
    state.fence = std::max(state.fence, planned.fence.epoch);
}

// One fence record under way; in the books when it is durable.
class LocalJournal::FenceWrite : public Work, public media::AppendSink {
  public:
    FenceWrite(LocalJournal* journal, VolumeState* state, WriteSink* sink)
        : journal_(journal), state_(state), sink_(sink) {
        ++state_->in_flight;
    }
    void on_append(Result<RecordPosition> position, Record& record) override {
        if (position && state_->is_dropped) {
            journal_->ring_.release(*position);
        } else if (position) {
            journal_->hold(*state_, make_retained(record, *position));
        }
        Result<void> outcome = position ? Result<void>{} : Result<void>(fail(position.error()));
        on_over(outcome);
        if (sink_ != nullptr) sink_->on_written(outcome);
        journal_->end_flight(*state_);
        journal_->end_work(this);
    }

  protected:
    virtual void on_over(const Result<void>&) {}
    LocalJournal* journal_;
    VolumeState* state_;

  private:
    WriteSink* sink_;
};

Result<media::Admission> LocalJournal::admit_fence() {
    if (device_.is_failed()) return fail(device_.failure());
    if (stopping_) return fail(Code::stopping, "the journal is being stopped");
    // With the most that its body can take.
    constexpr uint64_t kCost = 3 * kBlockBytes;
    static_assert(format::kRecordHeaderBytes + format::kFrameOverheadBytes +
                      format::kLogSpanCountMax * sizeof(format::LogSpan) + 256 <=
                  kCost);
    media::Admission admission = ring_.try_admit(kCost, Urgency::meta);
    if (!admission) admission = ring_.try_admit(kCost, Urgency::tail);
    if (admission) return admission;
    return fail(Code::busy, "the journal of {} is full, its reserve too", device_.name());
}

void LocalJournal::submit_fence(VolumeId volume, LineageId lineage,
                                const MemberLog::Stored& planned, media::Admission admission,
                                WriteSink* sink) {
    VolumeState& state = state_for(volume);
    CHECK(!state.is_dropped);
    if (!state.lineage) state.lineage = lineage;
    plan_state(state, planned);
    auto work = std::make_unique<FenceWrite>(this, &state, sink);
    FenceWrite* told = work.get();
    work_.emplace(told, std::move(work));
    ring_.submit(fence_record(state), std::move(admission), told);
}

Task<Result<void>> LocalJournal::forget_opens(VolumeState& state) {
    MemberLog::Stored planned = stored_of(state.id);
    planned.token = planned.recorded = OpenToken(0);
    plan_state(state, planned);
    Record record = fence_record(state);
    Retained entry = make_retained(record, {});
    CO_TRY_ASSIGN(entry.position, co_await append_state(state, std::move(record), Urgency::tail));
    hold(state, entry);
    co_return Result<void>{};
}

// ---- opening ----

// Where the chains stand after the last record up to `lsn`.
LocalJournal::Ends LocalJournal::ends_up_to(const VolumeState& state, Lsn lsn) {
    auto last = [lsn](const std::deque<Retained>& entries, Lsn before) {
        auto end = std::ranges::upper_bound(entries, lsn, {}, &Retained::lsn);
        return end == entries.begin() ? std::min(before, lsn) : std::prev(end)->lsn;
    };
    Ends out{last(state.data, state.trimmed_drained_lsn), last(state.meta, state.trimmed_meta_lsn),
             Lsn(0)};
    // Exactly, where nothing of it is cut off: of what is trimmed only a bound is known.
    if (state.last_data_lsn <= lsn) out.data = state.last_data_lsn;
    if (state.last_meta_lsn <= lsn) out.meta = state.last_meta_lsn;
    for (const KeptRoot& older : state.older_roots) {
        if (older.entry.lsn <= lsn) out.root = older.entry.lsn;
    }
    if (state.root && state.root->lsn <= lsn) out.root = state.root->lsn;
    return out;
}

Result<void> LocalJournal::check_open(VolumeId volume, const OpenCall& call) const {
    static const VolumeState kNothing(VolumeId(0), 0);
    const VolumeState* found = find_state(volume);
    const Lsn keep = call.message.keep_lsn;
    const VolumeState& state = found == nullptr || !keep ? kNothing : *found;
    if (found != nullptr && found->lineage && found->lineage != call.lineage) {
        return fail(Code::invalid_argument, "volume {} has lineage {} on {}, not {}", volume,
                    found->lineage, device_.name(), call.lineage);
    }
    LogBase base = call.base;
    base.drained_lsn = std::max(base.drained_lsn, state.trimmed_drained_lsn);
    base.meta_lsn = std::max(base.meta_lsn, state.trimmed_meta_lsn);
    std::set<Lsn> data, meta;
    // Of roots the newest alone is needed, and comes along: those before it may be named.
    Lsn root = ends_up_to(state, keep).root;
    for (const Record& record : call.records) {
        if (record.type == RecordType::root) root = std::max(root, record.lsn);
    }
    auto has = [keep](const std::deque<Retained>& kept, const std::set<Lsn>& come, Lsn lsn) {
        if (come.contains(lsn)) return true;
        return lsn <= keep && std::ranges::binary_search(kept, lsn, {}, &Retained::lsn);
    };
    for (const Record& record : call.records) {
        Lsn missing;
        if (record.prev_data_lsn > base.drained_lsn && !has(state.data, data, record.prev_data_lsn))
            missing = record.prev_data_lsn;
        if (record.prev_meta_lsn > base.meta_lsn && !has(state.meta, meta, record.prev_meta_lsn))
            missing = record.prev_meta_lsn;
        if (record.root_lsn > root) missing = record.root_lsn;
        if (missing) {
            return fail(Code::corrupt,
                        "an open of volume {} lacks the record at LSN {}, which the one at LSN {} "
                        "names",
                        volume, missing, record.lsn);
        }
        if (format::is_data(record.type)) data.insert(record.lsn);
        if (format::is_meta(record.type)) meta.insert(record.lsn);
    }
    const Lsn end = call.records.empty() ? keep : call.records.back().lsn;
    if (end == call.message.last_lsn) return {};
    return fail(Code::corrupt, "an open of volume {} ends at LSN {} and says {}", volume, end,
                call.message.last_lsn);
}

std::optional<std::vector<format::LogSpan>> LocalJournal::spans_after(const VolumeState& state,
                                                                      uint64_t open_number,
                                                                      Lsn keep_lsn) {
    const format::LogSpan mine{open_number, open_number, kNoLimit};
    std::vector<format::LogSpan> spans{mine};
    if (!keep_lsn) return spans;
    spans = spans_of(state);
    const bool is_cut = state.last_lsn > keep_lsn && !PLANTED("member.cuts_nothing_off");
    for (format::LogSpan& span : spans) {
        if (is_cut) span.limit_lsn = std::min(span.limit_lsn, keep_lsn);
    }
    // What is needed no more needs no span.
    const Lsn gone = std::min(state.trimmed_drained_lsn, state.trimmed_meta_lsn);
    std::erase_if(spans, [gone](const format::LogSpan& span) { return span.limit_lsn <= gone; });
    const bool is_next = !spans.empty() && spans.back().limit_lsn == kNoLimit &&
                         spans.back().last_open + 1 == open_number;
    if (is_next) {
        spans.back().last_open = open_number;
    } else {
        spans.push_back(mine);
    }
    if (spans.size() > format::kLogSpanCountMax) return std::nullopt;
    return spans;
}

// All of an open under way: its records and, last, the fence record by which they count.
class LocalJournal::OpenWrite final : public Work {
  public:
    OpenWrite(LocalJournal* journal, VolumeState* state, Lsn keep_lsn, LogBase base, size_t count,
              WriteSink* sink)
        : journal_(journal), state_(state), keep_lsn_(keep_lsn), base_(base), sink_(sink) {
        parts_.resize(count);
        for (Part& part : parts_) {
            part.open = this;
            ++state_->in_flight;
        }
    }
    std::vector<media::AppendSink*> sinks() {
        std::vector<media::AppendSink*> out;
        out.reserve(parts_.size());
        for (Part& part : parts_)
            out.push_back(&part);
        return out;
    }

  private:
    struct Part final : media::AppendSink {
        void on_append(Result<RecordPosition> position, Record& written) override {
            place = std::move(position);
            record = std::move(written);
            record.payload.clear();
            if (++open->ended_ == open->parts_.size()) return open->on_over();
            open->journal_->end_flight(*open->state_);
        }
        OpenWrite* open = nullptr;
        Record record;
        Result<RecordPosition> place;
    };

    void on_over() {
        const Result<RecordPosition>& last = parts_.back().place;
        Result<void> outcome = last ? Result<void>{} : Result<void>(fail(last.error()));
        if (last && !state_->is_dropped) {
            journal_->cut_off(*state_, keep_lsn_);
            state_->trimmed_drained_lsn = std::max(state_->trimmed_drained_lsn, base_.drained_lsn);
            state_->trimmed_meta_lsn = std::max(state_->trimmed_meta_lsn, base_.meta_lsn);
        }
        state_->is_replaced = false;
        for (Part& part : parts_) {
            if (!part.place) continue;
            Retained entry = make_retained(part.record, *part.place);
            if (&part != &parts_.back()) {
                journal_->settle(*state_, part.record, entry);
            } else if (state_->is_dropped) {
                journal_->ring_.release(*part.place);
            } else {
                journal_->hold(*state_, entry);
            }
        }
        if (sink_ != nullptr) sink_->on_written(outcome);
        journal_->end_flight(*state_);
        journal_->end_work(this);
    }

    LocalJournal* journal_;
    VolumeState* state_;
    const Lsn keep_lsn_;
    const LogBase base_;
    WriteSink* sink_;
    std::vector<Part> parts_;
    size_t ended_ = 0;
};

Result<media::Admission> LocalJournal::admit_open(VolumeId volume, const OpenCall& call) {
    const VolumeState* state = find_state(volume);
    bool fits = state == nullptr || !call.message.keep_lsn ||
                spans_after(*state, state->open_number_seen + 1, call.message.keep_lsn);
    if (!fits) {
        return fail(Code::busy,
                    "volume {} lost the end of its log on {} too often since its last checkpoint",
                    volume, device_.name());
    }
    if (call.records.empty()) return admit_fence();
    if (device_.is_failed()) return fail(device_.failure());
    if (stopping_) return fail(Code::stopping, "the journal is being stopped");
    // The fence record may begin a frame of its own.
    uint64_t cost = media::Ring::cost_together(call.records) + 4 * kBlockBytes;
    media::Admission admission = ring_.try_admit(cost, Urgency::user);
    if (admission) return admission;
    return fail(Code::busy, "the journal of {} has no room for {} bytes of the log of volume {}",
                device_.name(), cost, volume);
}

void LocalJournal::submit_open(OpenCall call, const MemberLog::Stored& planned,
                               media::Admission admission, WriteSink* sink) {
    VolumeState& state = state_for(call.volume);
    CHECK(!state.is_dropped);
    const Lsn keep = call.message.keep_lsn;
    const uint64_t number = state.open_number_seen + 1;
    auto spans = spans_after(state, number, keep);
    CHECK(spans.has_value());
    if (!state.lineage) state.lineage = call.lineage;
    Ends ends = keep ? ends_up_to(state, keep) : Ends{};
    for (Record& record : call.records) {
        record.open_number = number;
        // What it names may be trimmed everywhere, and did not come along.
        ends.data = std::max(ends.data, record.prev_data_lsn);
        ends.meta = std::max(ends.meta, record.prev_meta_lsn);
        if (format::is_data(record.type)) ends.data = record.lsn;
        if (format::is_meta(record.type)) ends.meta = record.lsn;
        if (record.type == RecordType::root) ends.root = record.lsn;
    }
    plan_state(state, planned);
    state.member->spans = std::move(*spans);
    state.open_number = state.open_number_seen = number;
    state.last_lsn = call.message.last_lsn;
    state.last_data_lsn = ends.data;
    state.last_meta_lsn = ends.meta;
    state.last_root_lsn = ends.root;
    state.is_replaced = !keep;
    Record fence = fence_record(state);
    auto& body = std::get<format::FenceBody>(fence.body);
    const LogBase kept =
        keep ? LogBase{body.member->drained_lsn, body.member->meta_lsn} : LogBase{};
    body.member->drained_lsn = std::max(kept.drained_lsn, call.base.drained_lsn);
    body.member->meta_lsn = std::max(kept.meta_lsn, call.base.meta_lsn);
    const bool is_early = PLANTED("member.opens_before_its_records");
    std::vector<Record> records = std::move(call.records);
    records.insert(is_early ? records.begin() : records.end(), std::move(fence));
    auto work = std::make_unique<OpenWrite>(this, &state, keep, call.base, records.size(), sink);
    OpenWrite* open = work.get();
    work_.emplace(open, std::move(work));
    std::vector<media::AppendSink*> sinks = open->sinks();
    if (is_early) std::ranges::rotate(sinks, sinks.end() - 1);
    ring_.submit_together(std::move(records), std::move(admission), sinks);
}

// What lies above `keep_lsn` is no part of the log any more; none: nothing is.
void LocalJournal::cut_off(VolumeState& state, Lsn keep_lsn) {
    auto cut = [&](std::deque<Retained>& entries) {
        for (; !entries.empty() && entries.back().lsn > keep_lsn; entries.pop_back())
            let_go(state, entries.back());
    };
    cut(state.data);
    cut(state.meta);
    while (state.root && state.root->lsn > keep_lsn) {
        let_go(state, *state.root);
        state.root.reset();
        state.root_body.reset();
        if (state.older_roots.empty()) break;
        state.root = state.older_roots.back().entry;
        state.root_body = state.older_roots.back().body;
        state.older_roots.pop_back();
    }
    while (!state.unsettled.empty() && state.unsettled.back().lsn > keep_lsn)
        state.unsettled.pop_back();
    std::erase_if(state.voidings, [keep_lsn](const Voiding& v) { return v.lsn > keep_lsn; });
    if (!keep_lsn) {
        state.trimmed_drained_lsn = state.trimmed_meta_lsn = state.settled_lsn = Lsn(0);
        state.damage.clear();
        state.damage_lsn = state.damage_meta_lsn = Lsn(0);
        if (state.damage_record) let_go(state, *state.damage_record);
        state.damage_record.reset();
    }
    state.drained_lsn = state.trimmed_drained_lsn;
    state.meta_lsn = state.trimmed_meta_lsn;
    for (const Trimming& trim : state.unsettled) {
        state.drained_lsn = std::max(state.drained_lsn, trim.drained_lsn);
        state.meta_lsn = std::max(state.meta_lsn, trim.meta_lsn);
    }
    state.voided.clear();
    for (const Voiding& voiding : state.voidings)
        state.voided.insert(state.voided.end(), voiding.voided.begin(), voiding.voided.end());
    std::erase_if(state.voided, [&state](Lsn lsn) { return lsn <= state.trimmed_drained_lsn; });
    std::ranges::sort(state.voided);
}

// ---- appending ----

class LocalJournal::RecordWrite final : public Work, public media::AppendSink {
  public:
    RecordWrite(LocalJournal* journal, VolumeState* state)
        : journal_(journal), state_(state), submitted_(journal->env_.clock.now()) {
        ++state_->in_flight;
    }
    void on_append(Result<RecordPosition> position, Record& record) override {
        if (position) journal_->settle(*state_, record, make_retained(record, *position));
        journal_->note_latency(submitted_);
        Result<void> outcome = position ? Result<void>{} : Result<void>(fail(position.error()));
        if (state_->watch != nullptr) state_->watch->on_appended(record.lsn, outcome);
        journal_->end_flight(*state_);
        journal_->end_work(this);
    }

  private:
    LocalJournal* journal_;
    VolumeState* state_;
    Time submitted_;
};

media::Admission LocalJournal::try_admit_record(const Record& record, Urgency urgency) {
    return ring_.try_admit(format::ring_cost_bytes(record), urgency);
}
Task<Result<media::Admission>> LocalJournal::admit_record(const Record& record, const void* owner) {
    uint64_t cost = format::ring_cost_bytes(record);
    co_return co_await ring_.admit(cost, Urgency::user, owner);
}
void LocalJournal::stop_waiting(const void* owner, const Error& why) {
    ring_.refuse_waiting(why, owner);
}

Result<void> LocalJournal::check_append(VolumeId volume, const Record& record) const {
    const VolumeState* state = find_state(volume);
    CHECK(state != nullptr);
    bool continues = record.lsn == state->last_lsn.next() && record.lineage == state->lineage &&
                     record.prev_data_lsn == state->last_data_lsn &&
                     record.prev_meta_lsn == state->last_meta_lsn &&
                     record.root_lsn == state->last_root_lsn;
    if (continues) return {};
    return fail(Code::corrupt,
                "the record of volume {} at LSN {} follows data {}, meta {} and root {} where {}, "
                "{} and {} are",
                volume, record.lsn, record.prev_data_lsn, record.prev_meta_lsn, record.root_lsn,
                state->last_data_lsn, state->last_meta_lsn, state->last_root_lsn);
}

void LocalJournal::submit_record(Record record, media::Admission admission) {
    VolumeState& state = state_for(record.volume);
    record.open_number = state.open_number;
    state.last_lsn = record.lsn;
    if (format::is_data(record.type)) state.last_data_lsn = record.lsn;
    if (format::is_meta(record.type)) state.last_meta_lsn = record.lsn;
    if (record.type == RecordType::root) state.last_root_lsn = record.lsn;
    auto work = std::make_unique<RecordWrite>(this, &state);
    RecordWrite* told = work.get();
    work_.emplace(told, std::move(work));
    ring_.submit(std::move(record), std::move(admission), told);
}

// ---- what is needed no more ----

void LocalJournal::settle_member(VolumeState& state, const Record& record) {
    if (const auto* seal = std::get_if<format::SealBody>(&record.body))
        state.unsettled.push_back({record.lsn, seal->drained_lsn, Lsn(0)});
    if (const auto* root = std::get_if<format::RootBody>(&record.body))
        state.unsettled.push_back({record.lsn, root->drained_lsn, root->meta_lsn});
    release_settled(state);
}

void LocalJournal::release_settled(VolumeState& state) {
    Lsn settled = state.settled_lsn;
    if (PLANTED("member.trims_what_may_be_undone")) settled = state.last_lsn;
    bool is_more = false;
    for (; !state.unsettled.empty() && state.unsettled.front().lsn <= settled; is_more = true) {
        const Trimming& trim = state.unsettled.front();
        state.trimmed_drained_lsn = std::max(state.trimmed_drained_lsn, trim.drained_lsn);
        state.trimmed_meta_lsn = std::max(state.trimmed_meta_lsn, trim.meta_lsn);
        state.unsettled.pop_front();
    }
    while (!state.older_roots.empty()) {
        bool is_last = state.older_roots.size() == 1;
        Lsn next = is_last ? state.root->lsn : state.older_roots[1].entry.lsn;
        if (next > settled) break;
        let_go(state, state.older_roots.front().entry);
        state.older_roots.pop_front();
    }
    if (is_more) trim(state);
}

// What is to be released is on record before it is.
class LocalJournal::NoteWrite final : public FenceWrite {
  public:
    NoteWrite(LocalJournal* journal, VolumeState* state, LogBase base)
        : FenceWrite(journal, state, nullptr), base_(base), open_number_(state->open_number) {
        state->is_noting = true;
    }

  private:
    void on_over(const Result<void>& outcome) override {
        state_->is_noting = false;
        // An open that kept nothing has come meanwhile, with a base of its own.
        if (!outcome || state_->is_dropped || state_->open_number != open_number_) return;
        state_->trimmed_drained_lsn = std::max(state_->trimmed_drained_lsn, base_.drained_lsn);
        state_->trimmed_meta_lsn = std::max(state_->trimmed_meta_lsn, base_.meta_lsn);
        journal_->trim(*state_);
    }
    const LogBase base_;
    const uint64_t open_number_;
};

void LocalJournal::settle_up_to(VolumeState& state, Lsn drained_lsn, Lsn meta_lsn) {
    LogBase base{std::min(drained_lsn, state.drained_lsn), std::min(meta_lsn, state.meta_lsn)};
    bool is_new =
        base.drained_lsn > state.trimmed_drained_lsn || base.meta_lsn > state.trimmed_meta_lsn;
    if (!is_new || state.is_noting || state.is_replaced || state.is_dropped) return;
    auto admission = admit_fence();
    if (!admission) return;
    ++state.member->number;
    Record record = fence_record(state);
    auto& body = std::get<format::FenceBody>(record.body);
    body.member->drained_lsn = std::max(body.member->drained_lsn, base.drained_lsn);
    body.member->meta_lsn = std::max(body.member->meta_lsn, base.meta_lsn);
    auto work = std::make_unique<NoteWrite>(this, &state, base);
    NoteWrite* told = work.get();
    work_.emplace(told, std::move(work));
    ring_.submit(std::move(record), std::move(*admission), told);
}

void LocalJournal::note_settled(VolumeId volume, Lsn lsn) {
    VolumeState* state = find_state(volume);
    if (state == nullptr || !state->member) return;
    LogBase base;
    for (const Trimming& trim : state->unsettled) {
        if (trim.lsn > lsn) break;
        base.drained_lsn = std::max(base.drained_lsn, trim.drained_lsn);
        base.meta_lsn = std::max(base.meta_lsn, trim.meta_lsn);
    }
    settle_up_to(*state, base.drained_lsn, base.meta_lsn);
}

// ---- for claimers and owners ----

Task<Result<LogRecords>> LocalJournal::read_log(VolumeId volume, Lsn after, uint64_t bytes) {
    CO_TRY_ASSIGN(runtime::Gate::Pass pass, gate_.enter());
    LogRecords out;
    VolumeState* state = find_state(volume);
    if (state == nullptr || state->is_dropped)
        co_return fail(Code::unavailable, "{} holds nothing of volume {}", device_.name(), volume);
    Use use(this, *state);
    out.base = {std::min(state->trimmed_drained_lsn, state->drained_lsn),
                std::min(state->trimmed_meta_lsn, state->meta_lsn)};
    std::vector<RecordPosition> positions;
    std::vector<Lsn> lsns;
    Pins pins(this);
    uint64_t taken = 0;
    out.is_last = true;
    for (const Retained* entry : state->in_order()) {
        if (entry->lsn <= after) continue;
        if (!positions.empty() && taken + entry->bytes > bytes) {
            out.is_last = false;
            break;
        }
        taken += entry->bytes;
        positions.push_back(entry->position);
        lsns.push_back(entry->lsn);
        pins.add(entry->position);
    }
    auto records = co_await ring_.read_many(std::move(positions));
    for (size_t i = 0; i < records.size(); ++i) {
        if (!records[i]) co_return fail(std::move(records[i]).error());
        if (records[i]->volume != volume || records[i]->lsn != lsns[i]) {
            co_return fail(Code::corrupt, "{}: LSN {} of volume {} lies where LSN {} of {} is due",
                           device_.name(), records[i]->lsn, records[i]->volume, lsns[i], volume);
        }
        out.records.push_back(std::move(*records[i]));
    }
    co_return out;
}

std::unique_ptr<LocalVolumeLog> LocalJournal::log_for_owner(VolumeId volume, Epoch epoch,
                                                            AppendTaker* taker) {
    VolumeState& state = state_for(volume);
    end_log(volume);
    LogTail tail = tail_of(state);
    tail.outcome = LogOutcome::complete;
    tail.fence_before = epoch;
    auto log = std::make_unique<LocalVolumeLog>(this, &state, epoch, std::move(tail));
    log->taker_ = taker;
    state.log = log.get();
    return log;
}

void LocalJournal::end_log(VolumeId volume) {
    VolumeState* state = find_state(volume);
    if (state == nullptr || state->log == nullptr) return;
    state->log->state_ = nullptr;
    state->log = nullptr;
    state->share.refuse_all();
}

}  // namespace peplos::replica
