//! The admin port's page for people, and what it draws, as JSON for programs.
//!
//! Both tell what the service `Jobs` tells, and refuse what it refuses. Nothing here changes any
//! state, and all that the page loads comes from here.

use std::sync::{Arc, OnceLock};

use axum::{
    Json, Router,
    extract::{Path, RawQuery, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use client::metadata::LEADER;
use proto::mapreduce::{
    JobRef, ListRequest, ListTasksRequest, ListWorkersRequest, TaskKind, jobs_server::Jobs,
};
use serde_json::{Value, json};
use tonic::{Code, Request, Status};

use crate::{service::JobsService, told};

/// What the page may load: its own files, nothing else.
const POLICY: &str =
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:";

/// What is shown, from when the coordinator can answer.
#[derive(Clone, Default)]
pub(crate) struct Shown(Arc<OnceLock<JobsService>>);

impl Shown {
    /// The coordinator can answer now. Only the first call counts.
    pub(crate) fn begin(&self, jobs: JobsService) {
        let _ = self.0.set(jobs);
    }

    fn jobs(&self) -> Result<&JobsService, Refused> {
        self.0.get().ok_or_else(|| Refused(Status::unavailable("the store is being opened")))
    }
}

/// The page's routes, beside those that every admin port has.
pub(crate) fn routes(shown: Shown) -> Router {
    let file = |kind: &'static str, text: &'static str| {
        get(async move || {
            let headers = [(header::CONTENT_TYPE, kind), (header::CONTENT_SECURITY_POLICY, POLICY)];
            (headers, text)
        })
    };
    Router::new()
        .route("/", file("text/html; charset=utf-8", include_str!("index.html")))
        .route("/page.css", file("text/css; charset=utf-8", include_str!("page.css")))
        .route("/page.js", file("text/javascript; charset=utf-8", include_str!("page.js")))
        .route("/api/jobs", get(jobs))
        .route("/api/jobs/{job}", get(job))
        .route("/api/jobs/{job}/tasks", get(tasks))
        .route("/api/workers", get(workers))
        .with_state(shown)
}

type Answer = Result<Json<Value>, Refused>;

/// `limit`, `page_token`: jobs, newest first.
async fn jobs(State(shown): State<Shown>, RawQuery(query): RawQuery) -> Answer {
    let query = Query::new(query, &["limit", "page_token"])?;
    let request =
        ListRequest { limit: query.number("limit")?, page_token: query.text("page_token") };
    let page = shown.jobs()?.list(Request::new(request)).await?.into_inner();
    let jobs: Vec<_> = page.jobs.iter().map(told::job).collect();
    Ok(Json(json!({ "jobs": jobs, "next_page_token": page.next_page_token })))
}

async fn job(State(shown): State<Shown>, Path(job): Path<String>) -> Answer {
    let request = JobRef { job, after_version: 0 };
    let job = shown.jobs()?.get(Request::new(request)).await?.into_inner();
    Ok(Json(told::job(&job)))
}

/// `kind` (`map` or `reduce`), `limit`, `page_token`: a job's tasks with their attempts.
async fn tasks(
    State(shown): State<Shown>,
    Path(job): Path<String>,
    RawQuery(query): RawQuery,
) -> Answer {
    let query = Query::new(query, &["kind", "limit", "page_token"])?;
    let kind = match query.text("kind").as_str() {
        "" => TaskKind::Unspecified,
        "map" => TaskKind::Map,
        "reduce" => TaskKind::Reduce,
        _ => return Err(Refused(Status::invalid_argument("kind: it is map or reduce"))),
    };
    let request = ListTasksRequest {
        job,
        kind: kind.into(),
        limit: query.number("limit")?,
        page_token: query.text("page_token"),
        ..ListTasksRequest::default()
    };
    let page = shown.jobs()?.list_tasks(Request::new(request)).await?.into_inner();
    let tasks: Vec<_> = page.tasks.iter().map(told::task).collect();
    Ok(Json(json!({ "tasks": tasks, "next_page_token": page.next_page_token })))
}

async fn workers(State(shown): State<Shown>) -> Answer {
    let request = Request::new(ListWorkersRequest {});
    let found = shown.jobs()?.list_workers(request).await?.into_inner().workers;
    let workers: Vec<_> = found.iter().map(told::worker).collect();
    Ok(Json(json!({ "workers": workers })))
}

/// Names and values behind the question mark. None that has a meaning here needs escapes.
struct Query(Vec<(String, String)>);

impl Query {
    fn new(query: Option<String>, known: &[&str]) -> Result<Self, Refused> {
        let query = query.unwrap_or_default();
        let pairs = query.split('&').filter(|pair| !pair.is_empty());
        let pairs = pairs.map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            if known.contains(&name) {
                return Ok((name.to_owned(), value.to_owned()));
            }
            let message = format!("there is no {name:?} to ask for, only {}", known.join(", "));
            Err(Refused(Status::invalid_argument(message)))
        });
        pairs.collect::<Result<_, _>>().map(Self)
    }

    fn text(&self, name: &str) -> String {
        let found = self.0.iter().find(|(given, _)| given == name);
        found.map(|(_, value)| value.clone()).unwrap_or_default()
    }

    /// 0 if it is not given.
    fn number(&self, name: &str) -> Result<u32, Refused> {
        let text = self.text(name);
        if text.is_empty() {
            return Ok(0);
        }
        let refused = |error| Refused(Status::invalid_argument(format!("{name}: {error}")));
        text.parse().map_err(refused)
    }
}

/// A status as HTTP has it, with who leads if that is somebody else.
struct Refused(Status);

impl From<Status> for Refused {
    fn from(status: Status) -> Self {
        Self(status)
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let Self(status) = self;
        let code = match status.code() {
            Code::InvalidArgument => StatusCode::BAD_REQUEST,
            Code::NotFound => StatusCode::NOT_FOUND,
            Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
            Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let leader = status.metadata().get(LEADER).and_then(|leader| leader.to_str().ok());
        (code, Json(json!({ "error": status.message(), "leader": leader }))).into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(text: &str) -> Result<Query, Refused> {
        Query::new(Some(text.to_owned()), &["limit", "page_token"])
    }

    #[test]
    fn what_is_asked_for_is_known_or_refused_by_name() {
        let asked = query("limit=7&page_token=m-3").ok().unwrap();
        assert_eq!(
            (asked.number("limit").ok(), asked.text("page_token").as_str()),
            (Some(7), "m-3")
        );
        assert_eq!(Query::new(None, &[]).ok().unwrap().number("limit").ok(), Some(0));
        let refused = |answer: Result<u32, Refused>| answer.err().unwrap().0.message().to_owned();
        assert!(refused(query("limt=7").map(|_| 0)).contains("limt"));
        for bad in ["limit=-1", "limit=4294967296", "limit=%37"] {
            assert!(refused(query(bad).ok().unwrap().number("limit")).starts_with("limit: "));
        }
    }

    #[tokio::test]
    async fn before_the_store_is_open_nothing_is_told() {
        let refused = workers(State(Shown::default())).await.err().unwrap().into_response();
        assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    }

    #[test]
    fn the_page_loads_nothing_from_elsewhere() {
        for file in [include_str!("index.html"), include_str!("page.css"), include_str!("page.js")]
        {
            let known = file.replace("http://www.w3.org/2000/svg", "");
            assert!(
                !known.contains("http:") && !known.contains("https:") && !known.contains("//cdn")
            );
            assert!(!file.contains("innerHTML"), "what comes from outside is text");
        }
    }
}
