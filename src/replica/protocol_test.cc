// The three machines of the replication protocol, by hand; `src/model` tries every order.
#include <gtest/gtest.h>

#include "replica/ensemble.h"
#include "replica/member_log.h"
#include "replica/takeover.h"

namespace peplos::replica {
namespace {

constexpr NodeId kOwner(1), kMember(2), kThird(3);
constexpr Claim kClaim{kOwner, Epoch(1), OpenToken(7)};
constexpr Claim kNewer{kThird, Epoch(2), OpenToken(8)};
constexpr Time kStart{std::chrono::hours(1)};

template <typename T, typename Actions>
std::vector<T> sent(const Actions& actions) {
    std::vector<T> out;
    for (const auto& action : actions) {
        const auto* send = std::get_if<Send>(&action);
        if (send != nullptr && std::holds_alternative<T>(send->message))
            out.push_back(std::get<T>(send->message));
    }
    return out;
}

EnsembleMember member(NodeId node, uint64_t token) {
    return {node, {}, Incarnation(1), OpenToken(token)};
}

class MemberLogTest : public testing::Test {
  protected:
    MemberLogTest()
        : log_(kMember, Incarnation(1), {},
               {kClaim, kClaim, 1, OpenToken(5), OpenToken(0), Lsn(0), false},
               kStart - std::chrono::seconds(10)) {}

    MemberLog::Actions tell(const Message& message, Time now = kStart) {
        MemberLog::Actions out;
        log_.on_message(message, now, out);
        return out;
    }
    MemberLog::Actions appended(uint64_t lsn, Time now = kStart) {
        MemberLog::Actions out;
        log_.on_appended(Lsn(lsn), now, out);
        return out;
    }
    MemberLog::Actions fenced(const Claim& claim, Time now = kStart) {
        MemberLog::Actions out;
        log_.on_fenced(claim, now, out);
        return out;
    }
    static AppendMessage append(uint64_t lsn) { return {kClaim, OpenToken(5), Lsn(lsn), kStart}; }

    MemberLog log_;
};

TEST_F(MemberLogTest, AnswersAnAppendWhenItIsDurableAndARepeatWithoutWritingAgain) {
    MemberLog::Actions first = tell(append(1));
    ASSERT_EQ(first.size(), 1u);
    EXPECT_EQ(std::get<MemberLog::WriteRecord>(first[0]).lsn, Lsn(1));
    EXPECT_TRUE(tell(append(1)).empty());  // under way
    auto answers = sent<MemberAnswer>(appended(1));
    ASSERT_EQ(answers.size(), 1u);
    EXPECT_EQ(answers[0].durable_lsn, Lsn(1));
    EXPECT_EQ(answers[0].sent_at, kStart);
    MemberLog::Actions repeat = tell(append(1));
    EXPECT_EQ(repeat.size(), 1u);
    EXPECT_EQ(sent<MemberAnswer>(repeat).size(), 1u);
    auto gap = sent<MemberAnswer>(tell(append(3)));
    ASSERT_EQ(gap.size(), 1u);
    EXPECT_TRUE(gap[0].is_gap);
}

TEST_F(MemberLogTest, AFenceIsDurableAndWaitsForThePromise) {
    std::ignore = tell(RenewMessage{kClaim, OpenToken(5), kStart});
    MemberLog::Actions taken = tell(FenceMessage{kNewer, Incarnation(1), OpenToken(5)});
    ASSERT_EQ(taken.size(), 1u);
    EXPECT_EQ(std::get<MemberLog::WriteFence>(taken[0]).claim, kNewer);
    // From now on the old owner gets nothing.
    EXPECT_EQ(sent<Refusal>(tell(append(1))).size(), 1u);
    MemberLog::Actions durable = fenced(kNewer);
    ASSERT_EQ(durable.size(), 1u);
    Time end = std::get<MemberLog::Wake>(durable[0]).at;
    EXPECT_EQ(end, kStart + Timing{}.promise);
    MemberLog::Actions out;
    log_.on_time(end, out);
    auto answers = sent<FenceAnswer>(out);
    ASSERT_EQ(answers.size(), 1u);
    EXPECT_EQ(answers[0].outcome, LogOutcome::complete);
}

TEST_F(MemberLogTest, ARestartHonoursThePromiseThatItForgot) {
    MemberLog again(kMember, Incarnation(1), {}, log_.stored(), kStart);
    MemberLog::Actions out;
    again.on_message(FenceMessage{kNewer, Incarnation(1), OpenToken(5)}, kStart, out);
    out.clear();
    again.on_fenced(kNewer, kStart, out);
    EXPECT_TRUE(std::holds_alternative<MemberLog::Wake>(out.at(0)));
    // Unless the claimer is who was promised to, and therefore died.
    MemberLog own(kMember, Incarnation(1), {}, log_.stored(), kStart);
    Claim same = {kOwner, Epoch(2), OpenToken(9)};
    out.clear();
    own.on_message(FenceMessage{same, Incarnation(1), OpenToken(5)}, kStart, out);
    out.clear();
    own.on_fenced(same, kStart, out);
    EXPECT_EQ(sent<FenceAnswer>(out).size(), 1u);
}

TEST_F(MemberLogTest, AnEmptyDeviceIsUnknownAndRefusesWhatWasMeantForTheOldOne) {
    log_ = MemberLog(kMember, Incarnation(2), {}, {}, kStart);
    std::ignore = tell(FenceMessage{kNewer, Incarnation(1), OpenToken(5)});
    auto answers = sent<FenceAnswer>(fenced(kNewer));
    ASSERT_EQ(answers.size(), 1u);
    EXPECT_EQ(answers[0].outcome, LogOutcome::unknown);
    OpenMessage late{.claim = kNewer, .version = 3, .incarnation = Incarnation(1)};
    late.token = OpenToken(6);
    EXPECT_EQ(sent<Refusal>(tell(late)).at(0).reason, Refusal::Reason::stranger);
}

TEST_F(MemberLogTest, StaysProvenByTheRecordedTokenWhileItIsOpenedAnew) {
    std::ignore = tell(FenceMessage{kNewer, Incarnation(1), OpenToken(5)});
    std::ignore = fenced(kNewer);
    OpenMessage open{.claim = kNewer, .version = 3, .incarnation = Incarnation(1)};
    open.token = OpenToken(6);
    open.recorded = OpenToken(5);
    EXPECT_TRUE(std::holds_alternative<MemberLog::WriteOpen>(tell(open).at(0)));
    MemberLog::Actions out;
    log_.on_opened(OpenToken(6), kStart, out);
    EXPECT_EQ(sent<MemberAnswer>(out).size(), 1u);
    Claim third{kOwner, Epoch(3), OpenToken(10)};
    std::ignore = tell(FenceMessage{third, Incarnation(1), OpenToken(5)});
    out = fenced(third, kStart + std::chrono::seconds(5));
    EXPECT_EQ(sent<FenceAnswer>(out).at(0).outcome, LogOutcome::complete);
}

TEST_F(MemberLogTest, AFailedDeviceSaysNothingElseAnyMore) {
    std::ignore = tell(append(1));
    MemberLog::Actions out;
    log_.on_io_error(out);
    EXPECT_EQ(sent<Refusal>(out).at(0).reason, Refusal::Reason::failed);
    EXPECT_EQ(sent<Refusal>(tell(append(1))).at(0).reason, Refusal::Reason::failed);
    EXPECT_EQ(sent<Refusal>(tell(FenceMessage{kNewer, {}, {}})).at(0).reason,
              Refusal::Reason::failed);
}

class EnsembleTest : public testing::Test {
  protected:
    EnsembleTest() {
        record_.claim = kClaim;
        record_.version = 1;
        record_.generation = 1;
        record_.ensemble = {member(kOwner, 4), member(kMember, 5)};
        ensemble_ = Ensemble(record_, Lsn(0), {});
    }
    OwnerActions hear(NodeId from, uint64_t token, uint64_t lsn, Time sent_at = kStart) {
        OwnerActions out;
        ensemble_.on_answer({kClaim, from, OpenToken(token), Lsn(lsn), false, sent_at}, kStart,
                            out);
        return out;
    }
    // A change to {owner, third} that waits for the control store.
    CompareAndSet decide() {
        OwnerActions out;
        ensemble_.propose({member(kOwner, 4), member(kThird, 6)}, kStart, out);
        EXPECT_EQ(sent<OpenMessage>(out).size(), 1u);
        out = hear(kThird, 6, ensemble_.last_lsn().value);
        for (const OwnerAction& action : out) {
            if (const auto* cas = std::get_if<CompareAndSet>(&action)) return *cas;
        }
        ADD_FAILURE() << "no compare-and-set";
        return {};
    }

    Ownership record_;
    Ensemble ensemble_;
    OwnerActions ignored_;
};

TEST_F(EnsembleTest, AcknowledgesWhatAllMembersHold) {
    ensemble_.submit(kStart, ignored_);
    EXPECT_TRUE(hear(kOwner, 4, 1).empty());
    EXPECT_EQ(std::get<Acknowledge>(hear(kMember, 5, 1).at(0)).lsn, Lsn(1));
}

TEST_F(EnsembleTest, AChangeReleasesAcknowledgementsOnlyWhenItIsRecorded) {
    ensemble_.submit(kStart, ignored_);
    std::ignore = hear(kOwner, 4, 1);
    CompareAndSet cas = decide();
    EXPECT_EQ(cas.expected, record_);
    EXPECT_EQ(ensemble_.acknowledged_lsn(), Lsn(0));
    // Unknown, and not there: it may come yet, so it is asked for again.
    OwnerActions out;
    ensemble_.on_cas(CasOutcome::unknown, record_, out);
    EXPECT_EQ(std::get<CompareAndSet>(out.at(0)), cas);
    EXPECT_EQ(ensemble_.acknowledged_lsn(), Lsn(0));
    ensemble_.on_cas(CasOutcome::conflict, cas.desired, out);  // the first call did it
    EXPECT_EQ(ensemble_.acknowledged_lsn(), Lsn(1));
    EXPECT_EQ(ensemble_.ownership(), cas.desired);
}

TEST_F(EnsembleTest, StopsWhenItsRecordIsSomebodyElses) {
    CompareAndSet cas = decide();
    Ownership other = record_;
    other.claim = kNewer;
    ensemble_.on_cas(CasOutcome::conflict, other, ignored_);
    EXPECT_TRUE(ensemble_.is_stopped());
    EXPECT_FALSE(ensemble_.may_read(kStart));
}

TEST_F(EnsembleTest, ReadsWhileAllThatMayBeMembersPromise) {
    EXPECT_FALSE(ensemble_.may_read(kStart));
    std::ignore = hear(kOwner, 4, 0);
    std::ignore = hear(kMember, 5, 0);
    EXPECT_TRUE(ensemble_.may_read(kStart));
    Timing timing;
    EXPECT_FALSE(ensemble_.may_read(kStart + timing.promise - timing.margin));
    OwnerActions out;
    ensemble_.propose({member(kOwner, 4), member(kThird, 6)}, kStart, out);
    EXPECT_TRUE(ensemble_.may_read(kStart));
    std::ignore = hear(kThird, 6, 0, {});  // says no promise
    EXPECT_EQ(ensemble_.change(), Ensemble::Change::deciding);
    EXPECT_FALSE(ensemble_.may_read(kStart));
}

class TakeoverTest : public testing::Test {
  protected:
    TakeoverTest() {
        record_.claim = kClaim;
        record_.version = 1;
        record_.generation = 1;
        record_.ensemble = {member(kOwner, 4), member(kMember, 5)};
    }
    void begin(uint64_t generation) {
        takeover_ = Takeover(kThird, OpenToken(8), Epoch(0), generation, {kOwner, kMember, kThird});
        takeover_.start(record_, out_);
        EXPECT_EQ(takeover_.claim(), kNewer);
        takeover_.on_cas(CasOutcome::done, {}, out_);
    }
    void hear(NodeId from, LogOutcome outcome, uint64_t lsn, uint64_t opened) {
        takeover_.on_fence_answer(
            {takeover_.claim(), from, Incarnation(1), outcome, Lsn(lsn), Epoch(opened)});
    }

    Ownership record_;
    Takeover takeover_;
    OwnerActions out_;
};

TEST_F(TakeoverTest, AdoptsTheLongestCompleteLogAndServesWhenTheCopyIsRecorded) {
    begin(1);
    EXPECT_EQ(sent<FenceMessage>(out_).size(), 2u);
    hear(kOwner, LogOutcome::unknown, 9, 1);
    EXPECT_FALSE(takeover_.may_adopt());
    EXPECT_NE(takeover_.why_waiting(), "");
    hear(kMember, LogOutcome::complete, 3, 1);
    ASSERT_TRUE(takeover_.may_adopt());
    out_.clear();
    takeover_.adopt({member(kMember, 15), member(kThird, 16)}, kStart, out_);
    auto opens = sent<OpenMessage>(out_);
    ASSERT_EQ(opens.size(), 2u);
    EXPECT_EQ(opens[0].keep_lsn, Lsn(3));
    EXPECT_EQ(opens[0].recorded, OpenToken(5));
    EXPECT_EQ(opens[1].keep_lsn, Lsn(0));
    for (const OpenMessage& open : opens) {
        EXPECT_EQ(takeover_.phase(), Takeover::Phase::opening);
        NodeId from = open.token == OpenToken(15) ? kMember : kThird;
        takeover_.on_answer({kNewer, from, open.token, Lsn(3), false, {}}, out_);
    }
    EXPECT_EQ(takeover_.phase(), Takeover::Phase::committing);
    takeover_.on_cas(CasOutcome::done, {}, out_);
    EXPECT_EQ(takeover_.phase(), Takeover::Phase::serving);
    EXPECT_EQ(takeover_.ownership().state, control::OwnershipState::open);
}

TEST_F(TakeoverTest, AsksEverybodyAfterARestoreAndBelievesTheNewestClaim) {
    begin(2);
    EXPECT_EQ(sent<FenceMessage>(out_).size(), 3u);
    hear(kOwner, LogOutcome::complete, 5, 1);
    hear(kMember, LogOutcome::unknown, 2, 2);
    EXPECT_FALSE(takeover_.may_adopt());
    hear(kThird, LogOutcome::unknown, 0, 0);
    ASSERT_TRUE(takeover_.may_adopt());
    EXPECT_EQ(takeover_.source().node, kMember);
}

TEST_F(TakeoverTest, AFenceAboveTheClaimShowsThatTheStoreWentBack) {
    begin(1);
    out_.clear();
    takeover_.on_refusal({kNewer, kMember, {}, Refusal::Reason::fenced, Epoch(6)}, out_);
    EXPECT_EQ(takeover_.claim().epoch, Epoch(7));
    EXPECT_TRUE(takeover_.is_restored());
    EXPECT_EQ(std::get<CompareAndSet>(out_.at(0)).desired.generation, 0u);
}

TEST_F(TakeoverTest, LosesToWhoeverClaimedFirst) {
    takeover_ = Takeover(kThird, OpenToken(8), Epoch(0), 1, {kOwner, kMember, kThird});
    takeover_.start(record_, out_);
    Ownership other = record_;
    other.claim = {kMember, Epoch(2), OpenToken(12)};
    takeover_.on_cas(CasOutcome::conflict, other, out_);
    EXPECT_EQ(takeover_.phase(), Takeover::Phase::lost);
}

}  // namespace
}  // namespace peplos::replica
