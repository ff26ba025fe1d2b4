-- What people ask of a snapshot, as views and macros of DuckDB: the same questions as in catalog.rankings and
-- catalog.queries. `scorers` are two ids, of one scorer of subjects and one of styles; subjects and styles are sha256.

CREATE VIEW finished_merges AS
    SELECT merge_id, subject, style, method, movement, seconds, night_id, finished_at FROM merges WHERE status = 'done';

-- What is not merged, and why.
CREATE VIEW failed_merges AS
    SELECT merge_id, subject, style, method, status, attempts, code, fact, next_step FROM merges
    WHERE status IN ('failed', 'blocked', 'skipped');

-- An adapter under the short name of the place where it was seen last.
CREATE VIEW named_adapters AS
    SELECT sha256, coalesce(regexp_replace(split_part(rtrim(repository, '/'), '/', -1), '-lora$', ''), left(sha256, 12))
            AS name, role, status, licence, (facts ->> 'rank')::INTEGER AS rank,
        (facts ->> 'size_bytes')::BIGINT AS size_bytes
    FROM adapters LEFT JOIN (
        SELECT sha256, arg_max(repository, (seen_at, alias_id)) AS repository FROM aliases GROUP BY sha256
    ) AS places USING (sha256);

CREATE VIEW usable_adapters AS
    SELECT adapters.*, list(repository ORDER BY seen_at DESC, alias_id) FILTER (alias_id IS NOT NULL) AS repositories
    FROM adapters LEFT JOIN aliases USING (sha256) WHERE status = 'usable' GROUP BY ALL;

CREATE VIEW open_requests AS
    SELECT subject, style, requested_at FROM requests WHERE closed_at IS NULL ORDER BY requested_at, request_id;

CREATE MACRO failures_of(night) AS TABLE
    SELECT 'refused' AS word, repository || '@' || revision || '/' || file_name AS item, code, fact, next_step,
        refused_at AS happened_at FROM refusals WHERE night_id = night
    UNION ALL
    SELECT 'failed', merge_id, code, fact, next_step, failed_at FROM failures WHERE night_id = night
    ORDER BY happened_at, item;

-- The two scorers by which most merges can be ranked.
CREATE VIEW ranking_scorers AS
    SELECT [subject_scorer, style_scorer] AS scorers, count(*) AS merges FROM rankings
    GROUP BY subject_scorer, style_scorer ORDER BY merges DESC, subject_scorer, style_scorer LIMIT 1;

-- The scorer that held the latest pictures against their prompts.
CREATE VIEW text_scorer AS
    SELECT arg_max(scorer_id, scored_at) AS scorer_id FROM summaries
    WHERE scorer_id = 'clip-t' OR starts_with(scorer_id, 'clip-t:');

-- Nearly all merges that have a place are done, and those that are to be done again are quickly told from them.
CREATE MACRO ranking(scorers) AS TABLE
    SELECT merge_id, subject, style, method, score_01
    FROM rankings ANTI JOIN (FROM merges WHERE status != 'done') AS undone USING (merge_id)
    WHERE len(list_distinct(scorers)) = 2
        AND subject_scorer IN (scorers[1], scorers[-1]) AND style_scorer IN (scorers[1], scorers[-1]);

CREATE MACRO best_styles_for(chosen, scorers) AS TABLE
    SELECT * FROM ranking(scorers) WHERE subject = chosen
    QUALIFY row_number() OVER (PARTITION BY style ORDER BY score_01 DESC, merge_id) = 1
    ORDER BY score_01 DESC, merge_id;

CREATE MACRO best_subjects_for(chosen, scorers) AS TABLE
    SELECT * FROM ranking(scorers) WHERE style = chosen
    QUALIFY row_number() OVER (PARTITION BY subject ORDER BY score_01 DESC, merge_id) = 1
    ORDER BY score_01 DESC, merge_id;

CREATE MACRO best_method_per_pair(scorers) AS TABLE
    SELECT * FROM ranking(scorers)
    QUALIFY row_number() OVER (PARTITION BY subject, style ORDER BY score_01 DESC, merge_id) = 1
    ORDER BY score_01 DESC, merge_id;

-- Every merge of the usual ranking with what people choose by, joined once for all: `publishable` says that it may leave
-- this machine and has not yet.
CREATE TABLE picks AS
    SELECT merge_id, subjects.name AS subject, styles.name AS style, rankings.method, score_01, subject_position, style_position,
        text_position, merged_licences.licence, subjects.rank + styles.rank AS rank,
        subjects.size_bytes + styles.size_bytes AS size_bytes, finished_at, night_id,
        merged_licences.licence IS NOT NULL AND merge_id NOT IN (
            SELECT merge_id FROM publications WHERE publications.status IN ('verified', 'withdrawn')
        ) AS publishable
    FROM rankings
    JOIN ranking_scorers ON scorers = [subject_scorer, style_scorer]
    JOIN (FROM merges WHERE status = 'done') AS finished USING (merge_id)
    JOIN named_adapters AS subjects ON subjects.sha256 = rankings.subject
    JOIN named_adapters AS styles ON styles.sha256 = rankings.style
    LEFT JOIN merged_licences
        ON subject_licence IS NOT DISTINCT FROM subjects.licence AND style_licence IS NOT DISTINCT FROM styles.licence
    LEFT JOIN (
        SELECT merge_id, position AS text_position FROM summaries WHERE scorer_id = (FROM text_scorer)
    ) AS texts USING (merge_id)
    ORDER BY score_01 DESC, merge_id;

-- Of the picks with one subject or style, by name, those that no other beats in subject, style and text.
CREATE MACRO pareto_front(chosen) AS TABLE
    WITH candidates AS (FROM picks WHERE chosen IN (subject, style) AND text_position IS NOT NULL)
    FROM candidates WHERE NOT EXISTS (
        FROM candidates AS other
        WHERE other.subject_position >= candidates.subject_position
            AND other.style_position >= candidates.style_position
            AND other.text_position >= candidates.text_position
            AND (other.subject_position, other.style_position, other.text_position)
                != (candidates.subject_position, candidates.style_position, candidates.text_position)
    )
    ORDER BY score_01 DESC, merge_id;

-- What is new since a moment.
CREATE MACRO changes_since(moment) AS TABLE
    SELECT 'found' AS word, sha256 AS item, first_seen_at AS happened_at FROM adapters WHERE first_seen_at >= moment
    UNION ALL
    SELECT 'merged', merge_id, finished_at FROM merges WHERE finished_at >= moment
    UNION ALL
    SELECT 'failed', merge_id, failed_at FROM failures WHERE failed_at >= moment
    UNION ALL
    SELECT 'refused', repository || '@' || revision || '/' || file_name, refused_at FROM refusals
    WHERE refused_at >= moment
    UNION ALL
    SELECT status, merge_id, changed_at FROM publications WHERE changed_at >= moment
    ORDER BY happened_at, item, word;

CREATE VIEW changes_of_last_night AS FROM changes_since((SELECT max(started_at) FROM nights));
