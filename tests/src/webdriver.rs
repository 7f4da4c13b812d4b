//! A headless Chromium, driven over the WebDriver protocol.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

/// How long a page may take to become what a test waits for: models run beside the browser, and other tests may.
const PATIENCE: Duration = Duration::from_secs(300);
/// What the driver prints when it listens.
const LISTENS: &str = "was started successfully on port ";
/// What the driver says of a script that did not answer in time, and at once of one whose page was left.
const NO_ANSWER: &str = "script timeout";
/// What the driver says of an element that the page has replaced.
const REDRAWN: &str = "stale element reference";

/// Why there is no browser, or why it did not do what it was asked.
#[derive(Debug)]
pub enum BrowserError {
    /// No driver is installed.
    Absent,
    /// The driver or the browser failed.
    Failed(String),
}

impl std::fmt::Display for BrowserError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            BrowserError::Absent => f.write_str("chromedriver is not installed (Debian packages chromium and chromium-driver)"),
            BrowserError::Failed(cause) => write!(f, "browser failed: {cause}"),
        }
    }
}

impl std::error::Error for BrowserError {}

fn failed(cause: impl std::fmt::Display) -> BrowserError {
    BrowserError::Failed(cause.to_string())
}

/// A browser with one window. Ends when dropped.
pub struct Browser {
    driver: Child,
    agent: ureq::Agent,
    session: String,
}

impl Browser {
    /// Starts a driver on a free port and a browser of `width` × `height` pixels with a fresh profile in `profile`.
    ///
    /// # Errors
    /// [`BrowserError::Absent`] where no driver is installed.
    pub fn start(profile: &Path, width: u32, height: u32) -> Result<Self, BrowserError> {
        let mut driver =
            Command::new("chromedriver").arg("--port=0").stdout(Stdio::piped()).stderr(Stdio::null()).spawn().map_err(
                |error| if error.kind() == std::io::ErrorKind::NotFound { BrowserError::Absent } else { failed(error) },
            )?;
        let stdout = driver.stdout.take().ok_or_else(|| failed("no output"))?;
        let port = BufReader::new(stdout)
            .lines()
            .map_while(Result::ok)
            .find_map(|line| Some(line.split_once(LISTENS)?.1.trim_end_matches('.').to_owned()))
            .ok_or_else(|| failed("the driver ended before it listened"))?;
        let agent =
            ureq::Agent::config_builder().timeout_global(Some(PATIENCE * 2)).http_status_as_error(false).build().new_agent();
        let mut browser = Self { driver, agent, session: format!("http://127.0.0.1:{port}") };
        let answer =
            browser.command("/session", json!({ "capabilities": { "alwaysMatch": capabilities(profile, width, height) } }))?;
        let id = answer["sessionId"].as_str().ok_or_else(|| failed("no session"))?;
        browser.session = format!("{}/session/{id}", browser.session);
        let patience_ms = PATIENCE.as_millis() as u64;
        browser.command("/timeouts", json!({ "script": patience_ms, "implicit": patience_ms }))?;
        Ok(browser)
    }

    /// Goes to `address`.
    ///
    /// # Errors
    /// When it cannot be loaded.
    pub fn open(&self, address: &str) -> Result<(), BrowserError> {
        self.command("/url", json!({ "url": address })).map(|_| ())
    }

    /// The value of a JavaScript expression.
    ///
    /// # Errors
    /// When it throws.
    pub fn value(&self, expression: &str) -> Result<Value, BrowserError> {
        self.command("/execute/sync", json!({ "script": format!("return ({expression});"), "args": [] }))
    }

    /// Waits, inside the page, until `expression` holds, and gives its value. A script that ends with its page, as another one is being loaded, has
    /// no answer: the next page is asked.
    ///
    /// # Errors
    /// When it does not hold in time.
    pub fn wait_for(&self, expression: &str) -> Result<Value, BrowserError> {
        let script = format!(
            "const done = arguments[0]; const look = () => {{ let value = null; try {{ value = ({expression}); }} catch (error) {{ }} \
             if (value) {{ clearInterval(timer); done(value); }} }}; const timer = setInterval(look, 50); look();"
        );
        let began = Instant::now();
        loop {
            match self.command("/execute/async", json!({ "script": script, "args": [] })) {
                Err(BrowserError::Failed(cause)) if cause.contains(NO_ANSWER) && began.elapsed() < PATIENCE => {}
                answer => return answer.map_err(|error| failed(format!("`{expression}` did not come true: {error}"))),
            }
        }
    }

    /// Clicks, with the mouse, on the first element that `selector` finds.
    ///
    /// # Errors
    /// When none comes in time, or it cannot be clicked.
    pub fn click(&self, selector: &str) -> Result<(), BrowserError> {
        self.with_element(selector, "click", &json!({}))
    }

    /// Types `text` into the first element that `selector` finds.
    ///
    /// # Errors
    /// When none comes in time, or it takes no text.
    pub fn write(&self, selector: &str, text: &str) -> Result<(), BrowserError> {
        self.with_element(selector, "value", &json!({ "text": text }))
    }

    /// Does `action` with the first element that `selector` finds. A page that draws itself anew between the two steps has another element
    /// in its place: that one is meant.
    fn with_element(&self, selector: &str, action: &str, body: &Value) -> Result<(), BrowserError> {
        let began = Instant::now();
        loop {
            let found = self.command("/element", json!({ "using": "css selector", "value": selector }))?;
            let id = found.as_object().and_then(|element| element.values().next()).and_then(Value::as_str);
            let id = id.ok_or_else(|| failed(format!("no `{selector}`")))?;
            match self.command(&format!("/element/{id}/{action}"), body.clone()) {
                Err(BrowserError::Failed(cause)) if cause.contains(REDRAWN) && began.elapsed() < PATIENCE => {}
                answer => return answer.map(|_| ()),
            }
        }
    }

    /// What the window shows, as base64 of a PNG.
    ///
    /// # Errors
    /// When the browser does not answer.
    pub fn screenshot(&self) -> Result<String, BrowserError> {
        let mut response = self.agent.get(format!("{}/screenshot", self.session)).call().map_err(failed)?;
        let mut answer: Value = response.body_mut().with_config().limit(64 << 20).read_json().map_err(failed)?;
        match answer["value"].take() {
            Value::String(base64) => Ok(base64),
            other => Err(failed(other)),
        }
    }

    fn command(&self, path: &str, body: Value) -> Result<Value, BrowserError> {
        let mut response = self.agent.post(format!("{}{path}", self.session)).send_json(body).map_err(failed)?;
        let ok = response.status().is_success();
        let mut answer: Value = response.body_mut().read_json().map_err(failed)?;
        let value = answer["value"].take();
        if ok {
            Ok(value)
        } else {
            Err(failed(value["message"].as_str().unwrap_or("no reason given").lines().next().unwrap_or_default()))
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Ends the browser, then the driver; one that has ended already needs no ending.
        let _ = self.agent.delete(&self.session).call();
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

fn capabilities(profile: &Path, width: u32, height: u32) -> Value {
    let args = [
        "--headless".to_owned(),
        "--no-sandbox".to_owned(),
        "--disable-gpu".to_owned(),
        "--disable-quic".to_owned(),
        "--disable-dev-shm-usage".to_owned(),
        "--no-first-run".to_owned(),
        "--disable-background-networking".to_owned(),
        "--disable-component-update".to_owned(),
        "--disable-sync".to_owned(),
        "--force-prefers-reduced-motion".to_owned(),
        format!("--user-data-dir={}", profile.display()),
        format!("--window-size={width},{height}"),
    ];
    json!({ "browserName": "chrome", "goog:chromeOptions": { "args": args }, "goog:loggingPrefs": { "browser": "ALL" } })
}
