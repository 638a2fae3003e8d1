# The commands of the second document as they are printed there; $API_BASE stands for its public address.

## check
curl -sS $API_BASE/api/v1/tools/check \
  -H "Authorization: Bearer $KEY" \
  -H "Content-Type: application/json" \
  -d '{"tool":"chat","units":1}'

## spend
curl -sS $API_BASE/api/v1/tools/spend \
  -H "Authorization: Bearer $KEY" \
  -H "Content-Type: application/json" \
  -d '{"tool":"chat","units":1,"reference":"req_2026-07-03_abc123"}'
