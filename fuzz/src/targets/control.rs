//! The control protocol: any line is refused or a request, which written down again is the same request.

use natgw::api::Request;

pub(super) fn run(input: &[u8]) {
    let Ok(request) = serde_json::from_slice::<Request>(input) else { return };
    let written = serde_json::to_string(&request).expect("a request can be written");
    let again: Request = serde_json::from_str(&written).expect("what was written can be read");
    assert_eq!(format!("{request:?}"), format!("{again:?}"), "{written}");
}
