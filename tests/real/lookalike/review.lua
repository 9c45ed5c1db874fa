-- Asks the reviewer about a request's token before the request goes on; the reviewer's answer is in txn.review.
core.register_action("review", { "http-req" }, function(txn, url)
  local token = txn.sf:req_hdr("authorization")
  local headers = { ["authorization"] = { token or "" } }
  local response = core.httpclient():get({ url = url, headers = headers, timeout = 10000 })
  txn:set_var("txn.review", response and response.status or 500)
end, 1)
